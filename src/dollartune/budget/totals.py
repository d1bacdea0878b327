"""Sums over what a ledger has booked: by category, method and trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dollartune.budget.journal import Piece, read_lines, read_open, settled


@dataclass(frozen=True)
class Totals:
    """Sums over pieces. `by_method` and `by_trial` hold what was booked for a method or trial; the rest is shared.

    Dollars are those of the moment of booking: a later price, or another machine's, changes nothing that was paid.
    """

    seconds: float
    dollars: float
    by_category: Mapping[str, float]
    """Seconds."""
    by_method: Mapping[str, float]
    """Seconds."""
    by_trial: Mapping[str, float]
    """Seconds of the newest attempt at each: earlier ones are in all other sums, but made nothing of what the trial left."""
    shared_seconds: float
    """Seconds booked for no method: loading the backbone, planning, waiting."""
    dollars_by_method: Mapping[str, float]
    dollars_by_category: Mapping[str, float]
    dollars_by_trial: Mapping[str, float]
    """Of the newest attempt at each."""


def totals(pieces: Iterable[Piece], failed: Iterable[str] = ()) -> Totals:
    """Sums pieces; the own time of bookings in `failed` moves to the category `failure`."""
    failures = set(failed)
    by_category: dict[str, float] = {}
    by_method: dict[str, float] = {}
    by_trial: dict[str, float] = {}
    dollars_by_method: dict[str, float] = {}
    dollars_by_category: dict[str, float] = {}
    dollars_by_trial: dict[str, float] = {}
    attempts: dict[str, int] = {}
    seconds = dollars = shared = 0.0
    for piece in pieces:
        seconds += piece.seconds
        dollars += piece.dollars
        # The whole booking, also its pieces from before the error: nothing came of any of it.
        category = "failure" if piece.booking in failures else piece.category
        by_category[category] = by_category.get(category, 0.0) + piece.seconds
        dollars_by_category[category] = dollars_by_category.get(category, 0.0) + piece.dollars
        if piece.trial is not None and piece.attempt >= attempts.get(piece.trial, 0):
            if piece.attempt > attempts.get(piece.trial, 0):
                by_trial[piece.trial] = dollars_by_trial[piece.trial] = 0.0
            attempts[piece.trial] = piece.attempt
            by_trial[piece.trial] = by_trial.get(piece.trial, 0.0) + piece.seconds
            dollars_by_trial[piece.trial] = dollars_by_trial.get(piece.trial, 0.0) + piece.dollars
        if piece.method is None:
            shared += piece.seconds
        else:
            by_method[piece.method] = by_method.get(piece.method, 0.0) + piece.seconds
            dollars_by_method[piece.method] = dollars_by_method.get(piece.method, 0.0) + piece.dollars
    return Totals(
        seconds, dollars, by_category, by_method, by_trial, shared, dollars_by_method, dollars_by_category, dollars_by_trial
    )  # fmt: skip


def read_totals(path: Path) -> Totals:
    """What a ledger file says, without taking part in the run that writes it (for `dollartune status`)."""
    running = read_open(path)  # first: what is settled between the two is in both, and counts once
    pieces, failed, _ = settled(read_lines(path), running)
    return totals(pieces, failed)


class RunningSums:
    """Seconds and dollars by method, kept up to date so that a deadline costs nothing to ask at every step."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.sums: dict[str | None, tuple[float, float]] = {}
        for piece in pieces:
            self.add(piece)

    def add(self, piece: Piece) -> None:
        seconds, dollars = self.sums.get(piece.method, (0.0, 0.0))
        self.sums[piece.method] = (seconds + piece.seconds, dollars + piece.dollars)

    def of(self, method: str | None, parts: int) -> tuple[float, float]:
        """Seconds and dollars of everything (None), or of a method with one of `parts` equal parts of what is shared."""
        if method is None:
            return sum(s for s, _ in self.sums.values()), sum(d for _, d in self.sums.values())
        alone, shared = self.sums.get(method, (0.0, 0.0)), self.sums.get(None, (0.0, 0.0))
        # Without a list of methods nobody is charged for what is shared.
        part = 1 / parts if parts else 0.0
        return alone[0] + shared[0] * part, alone[1] + shared[1] * part
