"""Published results as data: every table of the five sources, with who measured it, on what, and what it cost.

    from dollartune.evidence import findings
    findings(table="001.table1", method="lora", data="cola")

A study of your own can be added by a YAML file in `tables/` of the same form.
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
from dollartune.evidence.published import Paid, Published, PublishedFigures, paid, source_machine

__all__ = [
    "Claim",
    "Finding",
    "Formula",
    "Paid",
    "Published",
    "PublishedFigures",
    "Source",
    "Table",
    "claims",
    "findings",
    "formulas",
    "paid",
    "source_machine",
    "sources",
    "tables",
]
