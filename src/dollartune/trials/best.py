"""Which of several tried settings is the best, by what the validation rows say of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord


NEAR = 0.25
"""Of a standard error: about one of 200 rows."""


class Judged(NamedTuple):
    """What validation rows say of one setting."""

    score: float | None
    """None: it has none (failed, or ended as hopeless)."""
    standard_error: float = 0.0
    log_loss: float | None = None
    """At the best temperature (`train.calibrated_loss`); None where the score counts something else than right answers."""

    @classmethod
    def of(cls, record: TrialRecord) -> Judged:
        judged = record.validation
        if judged is None:
            return cls(record.validation_score)
        return cls(record.validation_score, judged.standard_error, judged.log_loss)


def index_of_best(judged: Sequence[Judged]) -> int | None:
    """The setting to hand over: the highest score; of those a row or so below it, the least log-loss.

    One validation row more or less is luck; how nearly right or wrong the other answers were is not. It decides no more than
    that: a log-loss likes a solved probe's cautious answers. Of MiniLM's runs on PhraseBank it preferred the probe (0.476, and
    0.806 right on the test rows) to full tuning (0.515, and 0.84 in runs like it).

    Returns:
        Its index, of equal ones the first; None where nothing has a score.
    """
    scored = [index for index, one in enumerate(judged) if one.score is not None]
    if not scored:
        return None
    best = max(scored, key=lambda index: judged[index].score or 0.0)
    top = judged[best]
    if top.log_loss is None or top.score is None:
        return best
    least = top.score - NEAR * top.standard_error
    near = [index for index in scored if (judged[index].score or 0.0) >= least and judged[index].log_loss is not None]
    return min(near, key=lambda index: (judged[index].log_loss, index != best, index))
