"""Score against money as it was spent, and what more of it would buy.

best until then ^        ┌───────  the last half of the money: + 0.006 ──> as much again: + 0.006 x 0.006 / 0.02
                |   ┌────┘         the half before it:         + 0.020
                └───┴────────────> seconds or dollars booked for it

Money is that of one board (a task with a number of training rows): its own trials, and an equal part of what no trial was booked
for (loading, planning, the report). What other boards took bought nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.budget.journal import read_lines, read_open, settled
from dollartune.study.varying_settings import shown_labels

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store

HIGHEST = 1.0
"""Of every measure: more money buys nothing beyond it."""
FEWEST = 3
"""Scores below which nothing is said about what comes next."""


@dataclass(frozen=True)
class MoneyPoint:
    """A record, at the money that had been booked for its board when it ended."""

    board: str
    """`task|rows`, as `dollartune view` names it."""
    label: str
    seed: int
    seconds: float
    dollars: float
    score: float
    """On the validation rows, by which a study chooses."""
    best: float
    """Until then, on its board."""
    error: float
    """Standard error of the score; 0 where it is not known."""
    baseline: bool = False
    """More money makes no better ones."""


def score_over_money(store: Store, records: Sequence[TrialRecord]) -> list[MoneyPoint]:
    """A point per record, in the order in which they ended; a baseline without a validation score is left out."""
    running = read_open(store.ledger)  # first: what is settled between the two is in both, and counts once
    pieces, _, _ = settled(read_lines(store.ledger), running)
    board_of = {record.id: f"{record.trial.task}|{record.trial.scale or ''}" for record in records}
    parts = len(set(board_of.values())) or 1
    spent: dict[str, tuple[float, float]] = {}
    shared = (0.0, 0.0)
    ended: dict[str, tuple[int, float, float]] = {}
    # The journal is in the order in which bookings ended; money is spent in the order in which they began.
    for place, piece in enumerate(sorted(pieces, key=lambda piece: piece.started)):
        board = board_of.get(piece.trial) if piece.trial is not None else None
        if piece.trial is None or board is None:
            shared = (shared[0] + piece.seconds, shared[1] + piece.dollars)
            continue
        seconds, dollars = spent.get(board, (0.0, 0.0))
        spent[board] = seconds, dollars = seconds + piece.seconds, dollars + piece.dollars
        ended[piece.trial] = (place, seconds + shared[0] / parts, dollars + shared[1] / parts)
    shown = shown_labels([record for record in records if record.status == "done"])
    known = [record for record in records if record.id in ended and record.validation_score is not None]
    points: list[MoneyPoint] = []
    best: dict[str, float] = {}
    for record in sorted(known, key=lambda record: ended[record.id]):
        score, validation, trial, board = (
            float(record.validation_score or 0.0),
            record.validation,
            record.trial,
            board_of[record.id],
        )
        best[board] = max(best.get(board, float("-inf")), score)
        error = 0.0 if validation is None else validation.standard_error
        if not error and validation is not None and record.metric == "accuracy" and validation.examples:
            error = (score * (1 - score) / validation.examples) ** 0.5
        points.append(
            MoneyPoint(
                board,
                shown.get(trial.label, trial.label),
                trial.seed,
                *ended[record.id][1:],
                score,
                best[board],
                error,
                trial.baseline,
            )
        )
    return points


def more_money(points: Sequence[MoneyPoint], priced: bool) -> str | None:
    """What the next dollars (or seconds) would buy, in a sentence; None where too little was seen.

    The gain of doubling the money falls by the factor by which it fell last time: learning curves and the best of many draws both
    flatten about geometrically over doublings. A rough rule, which the sentence holds against the noise of one score.

    Args:
        points: of one board, where money was spent on whatever promised most.
        priced: whether dollars are counted.
    """
    points = [one for one in points if not one.baseline]
    if len(points) < FEWEST:
        return None
    highest = accumulate((one.score for one in points), max)
    points = [replace(one, best=best) for one, best in zip(points, highest, strict=True)]
    whole = points[-1].dollars if priced else points[-1].seconds
    if (points[0].dollars if priced else points[0].seconds) > whole / 2:
        return None  # the first trial took it: nothing is known of what the first half alone would have bought

    def best_by(share: float) -> float:
        early = [one.best for one in points if (one.dollars if priced else one.seconds) <= share * whole]
        return early[-1] if early else points[0].best

    last, before = points[-1].best - best_by(0.5), best_by(0.5) - best_by(0.25)
    # It does not grow: one lucky jump late is no law.
    gain = last * min(1.0, last / before) if before > 0 else last / 2
    gain = min(gain, HIGHEST - points[-1].best)
    half, again = map(numbers.dollars if priced else numbers.seconds, (whole / 2, whole))
    said = f"The second half of the money ({half}) raised the best validation score by {numbers.score(last)}"
    error = next(one.error for one in reversed(points) if one.best == points[-1].best)
    if gain < 0.0005:
        return f"{said}: as much again ({again}) is not expected to raise it further."
    noise = (
        ""
        if not error
        else f", {'less' if gain < error else 'more'} than the standard error of a score, {numbers.score(error)}"
    )
    return f"{said}; as much again ({again}) is expected to buy about {numbers.score(gain)}{noise}."
