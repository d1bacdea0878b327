"""Published results as data: every table of the five sources, with who measured it, on what, and what it cost.

    from dollartune.evidence import findings
    findings(table="001.table1", method="lora", data="cola")

Studies that were run with DollarTune itself stand beside them: `studies()`, see `evidence/ours.py`.
"""

from __future__ import annotations

from dollartune.evidence.findings import (
    Claim,
    Finding,
    Formula,
    Source,
    Table,
    claims,
    findings,
    formulas,
    sources,
    tables,
)
from dollartune.evidence.ours import Study, StudyRow, from_study, studies
from dollartune.evidence.published import Paid, Published, PublishedFigures, paid, source_machine

__all__ = [
    "Claim",
    "Finding",
    "Formula",
    "Paid",
    "Published",
    "PublishedFigures",
    "Source",
    "Study",
    "StudyRow",
    "Table",
    "claims",
    "findings",
    "formulas",
    "from_study",
    "paid",
    "source_machine",
    "sources",
    "studies",
    "tables",
]
