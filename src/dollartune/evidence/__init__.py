"""Published results as data: every table of the five sources, with who measured it, on what, and what it cost.

    from dollartune.evidence import findings
    findings(table="001.table1", method="lora", data="cola")

Studies that were run with DollarTune itself stand beside them: `studies()`, see `evidence/ours.py`.
"""

from __future__ import annotations

import warnings
from typing import Any

from dollartune.evidence.findings import (
    Claim,
    Finding,
    Formula,
    PublishedTable,
    Source,
    claims,
    findings,
    formulas,
    sources,
    tables,
)
from dollartune.evidence.ours import RecordedStudy, StudyRow, from_study, studies
from dollartune.evidence.published import Paid, Published, PublishedFigures, paid, source_machine

__all__ = [
    "Claim",
    "Finding",
    "Formula",
    "Paid",
    "Published",
    "PublishedFigures",
    "PublishedTable",
    "RecordedStudy",
    "Source",
    "StudyRow",
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

_RENAMED = {"Study": "RecordedStudy", "Table": "PublishedTable"}
"""Names of 0.1, which two classes each had; to be deleted with `_moved`."""


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is {__name__}.{_RENAMED[name]} now.", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
