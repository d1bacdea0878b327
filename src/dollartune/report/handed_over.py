"""The adapter that is handed over, beside the method that the headline names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune.report.contents import collect
from dollartune.report.text import best_as_headline

if TYPE_CHECKING:
    from dollartune.study.results import Results
    from dollartune.trials.record import TrialRecord


def handed_over(results: Results, record: TrialRecord) -> str | None:
    """Why this adapter, where the headline of its task and scale names another method; None where it names this one."""
    for board in collect(results).boards:
        if (board.task, board.scale) == (record.trial.task, record.trial.scale):
            # by its record: a table may show more of its settings than the label that is stored
            entry = next((one for one in board.entries if record.id in {r.id for r in one.records}), None)
            return None if entry is None else best_as_headline(board, entry)
    return None
