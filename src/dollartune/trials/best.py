"""Which of several tried settings is the best, by what the validation rows say of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord


def index_of_best(scores: Sequence[float | None]) -> int | None:
    """The setting to hand over: the highest validation score, of equal ones the first.

    A log-loss on the same rows was tried beside it (`ValidationResult.log_loss`) and likes a solved probe's cautious answers: of
    MiniLM's runs on PhraseBank it preferred the probe (0.476, and 0.806 right on the test rows) to full tuning (0.515, and 0.83).

    Args:
        scores: None for what has none (failed, or ended as hopeless).

    Returns:
        Its index; None where nothing has a score.
    """
    scored = [(score, -index) for index, score in enumerate(scores) if score is not None]
    return -max(scored)[1] if scored else None


def best_record(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The record to hand over; of equal scores the one that is an average with the other, else the first."""
    # the sort keeps the order of all others
    ordered = sorted(records, key=lambda record: record.trial.averaged_with is None)
    best = index_of_best([record.validation_score for record in ordered])
    return ordered[best or 0] if ordered else None
