"""Methods over several boards: a board is one task at one number of training rows, where methods met on the same rows.

Scores of different tasks have no common unit, so a method's place among those it met is what is averaged:

    place = (rank - 1) / (methods on the board - 1)        0 is first, 1 is last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dollartune.advise.own_study import MethodResult, Priority, measured

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Overall:
    """One method over all boards that it was on."""

    method: str
    place: float
    """Mean place for the priority, 0 to 1."""
    good: int
    """Boards on which it may be the best, or is within noise of it."""
    boards: tuple[tuple[str, MethodResult], ...]
    """(task, what was measured there)."""

    @property
    def good_enough(self) -> bool:
        """On at least half of its boards."""
        return 2 * self.good >= len(self.boards)


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each task; those without a task stand together."""
    rows_of_task: dict[str, list[Row]] = {}
    for row in rows:
        rows_of_task.setdefault(str(row.get("task") or "your task"), []).append(row)
    return rows_of_task


def overall(boards: Mapping[str, Sequence[Row]], priority: Priority) -> list[Overall]:
    """Methods over boards, best first: those that are good enough on at least half of their boards, then the others.

    Args:
        boards: rows by the board's name.
    """
    ranks: dict[str, list[float]] = {}
    met: dict[str, list[tuple[str, MethodResult]]] = {}
    for name, rows in boards.items():
        order = measured(rows, priority)
        for rank, one in enumerate(order):
            ranks.setdefault(one.method, []).append(rank / max(1, len(order) - 1))
            met.setdefault(one.method, []).append((name, one))
    results = [
        Overall(
            method, fmean(ranks[method]), sum(one.good_enough for _, one in results_of_method), tuple(results_of_method)
        )
        for method, results_of_method in met.items()
    ]
    return sorted(results, key=lambda one: (not one.good_enough, one.place, one.method))
