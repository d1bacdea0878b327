"""Reports: one HTML page, Markdown and CSV; the same charts inline in a notebook.

    from dollartune.report import write_report, pareto, learning_curves
    write_report(results, Path("report"))      # report.html, report.md, results.csv, leaderboard.csv
    pareto(results)                            # an altair chart

Names load on first use; charts and the page need the extra `report` (altair and vl-convert).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollartune.report.notebook import (
        ablations,
        breakdown,
        convergence,
        forgetting,
        learning_curves,
        money,
        parameters,
        pareto,
        requests,
        scales,
        speedup,
    )
    from dollartune.report.write import write_report

_HOME = {
    "write_report": "write",
    **dict.fromkeys(
        (
            "pareto", "parameters", "money", "learning_curves", "scales", "breakdown", "convergence", "speedup", "requests",
            "forgetting", "ablations",
        ),
        "notebook",
    ),
}  # fmt: skip
__all__ = [
    "ablations",
    "breakdown",
    "convergence",
    "forgetting",
    "learning_curves",
    "money",
    "parameters",
    "pareto",
    "requests",
    "scales",
    "speedup",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
