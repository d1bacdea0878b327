"""How fast methods learn: epoch and seconds at the best validation loss, and full tuning's speed-up against each.

    speed-up = 1 - seconds(full) / seconds(method)

73 % means that full tuning was at its best after 27 % of the other's time; a negative value that it was slower.

Source: reference 001, Figure 1 and Table 4. There one figure per task and scale holds full tuning against the mean of
all other methods, which is `against_all` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from dollartune.methods.registry import reference

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry


def full_name() -> str:
    """What full tuning is called."""
    return reference("everything").name


@dataclass(frozen=True)
class Convergence:
    """One method at one scale, means over its seeds."""

    entry: BoardEntry
    epoch: float
    seconds: float
    speed_up: float | None
    """Of full tuning against this method; None for full tuning itself and where it was not run."""


def converged(board: Board) -> list[Convergence]:
    """The methods of a board that were tuned, fastest first; full tuning with several settings counts with its best."""
    rows = []
    for entry in board.entries:
        epoch, seconds = entry.mean_training("best_epoch"), entry.mean_training("best_seconds")
        if epoch is None or seconds is None or seconds <= 0:
            continue
        reference = full_seconds(board, entry.backbone)
        nothing_to_compare = entry.method == full_name() or reference is None
        rows.append(
            Convergence(
                entry, epoch, seconds, None if nothing_to_compare or reference is None else 1 - reference / seconds
            )
        )
    return sorted(rows, key=lambda row: row.seconds)


def full_seconds(board: Board, backbone: str) -> float | None:
    """Seconds to the best validation loss of full tuning of a backbone, in its setting with the highest score; None if
    not run."""
    full = (
        e.mean_training("best_seconds") for e in board.entries if e.method == full_name() and e.backbone == backbone
    )
    # The first: entries stand best first.
    return next((seconds for seconds in full if seconds), None)


def against_all(board: Board) -> float | None:
    """Full tuning's speed-up against the mean time of all other tuned methods; None where either is missing, or where
    several backbones stand on one board."""
    backbones = {entry.backbone for entry in board.entries}
    reference = full_seconds(board, backbones.pop()) if len(backbones) == 1 else None
    others = [row.seconds for row in converged(board) if row.entry.method != full_name()]
    return 1 - reference / fmean(others) if reference is not None and others else None
