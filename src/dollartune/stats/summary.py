"""One summary of several boards: where a method stands on average, and how often a run of the leader beats one of its runs.

Scores of two tasks have no common scale, ranks and comparisons have one. Of methods m on boards b (a task with a number of
training rows), with S runs each:

    mean rank                    1/B sum_b rank_mb                      of the runs' mean score; 1 is best, equal ones share
    probability of improvement   1/B sum_b 1/S^2 sum_ij [x_bi > y_bj]   a run of X scores higher than a run of Y; ties count half

Both with percentile intervals of a stratified bootstrap: on each board runs are drawn anew, and so are test rows, the same ones
for every method and for every board of one task. Resampled means of S runs vary less than true ones, by (S - 1)/S; what they
differ by is stretched by its root. A share of few comparisons, all of which came out alike, has no spread to resample: its
interval is never narrower than Wilson's for as many runs as were compared.

The intervals hold for these boards: how another task would rank the methods cannot be told from two or three.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021, section 4.3 (probability of
improvement, stratified bootstrap); Rao and Wu, "Resampling inference with complex survey data", 1988 (stretching).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from dollartune import format as numbers
from dollartune.stats.intervals import draw_counts, wilson_sides
from dollartune.stats.outcomes import resampled_together

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dollartune.stats.outcomes import Floats, Sampled

RESAMPLES = 1000
"""Percentiles of ranks and shares need no more: their own noise is below 3 % of an interval's width."""


@dataclass(frozen=True)
class TaskScores:
    """The methods on one board."""

    task: str
    """Boards of one task have the same test rows."""
    methods: Mapping[str, Sampled]
    paired_seeds: bool = True
    """As in `compare`: runs of all methods are then drawn together."""


@dataclass(frozen=True)
class PointEstimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MethodSummary:
    """One method over all boards."""

    method: str
    mean_rank: PointEstimate
    improvement: PointEstimate | None
    """Probability that a run of the leader scores higher than a run of this method; None for the leader."""


@dataclass(frozen=True)
class Summary:
    """Methods that are on every board, best mean rank first."""

    methods: tuple[MethodSummary, ...]
    boards: int
    level: float
    left_out: tuple[str, ...]
    """Methods that some board lacks."""
    single: bool
    """Whether a method ran with one seed, so that intervals know nothing of other seeds."""

    @property
    def leader(self) -> str:
        return self.methods[0].method

    @property
    def sentence(self) -> str:
        """What the figures are, and what they hold for."""
        seeds = "these seeds" if self.single else "other seeds"
        missing = f" Not on every one, and left out: {', '.join(self.left_out)}." if self.left_out else ""
        return (
            f"Over {self.boards} combinations of task and training rows, with {numbers.percent(self.level)} intervals for other "
            f"test rows and {seeds}, not for other tasks. Mean rank: 1 is best. Probability of improvement: that a run of "
            f"{self.leader} scores higher than a run of the method.{missing}"
        )


def summarize(
    boards: Sequence[TaskScores], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Summary | None:
    """None with fewer than two boards, or fewer than two methods that are on all of them."""
    if len(boards) < 2:
        return None
    named = list(dict.fromkeys(name for board in boards for name in board.methods))
    common = [name for name in named if all(name in board.methods for board in boards)]
    if len(common) < 2:
        return None
    rng = np.random.default_rng(seed)
    points = [[board.methods[name].points() for name in common] for board in boards]
    runs = [_resampled_runs(board, common, resamples, rng) for board in boards]
    ranks = np.mean([_ranks(np.array([[p.mean() for p in board]])) for board in points], axis=0)[0]  # (M,)
    drawn = np.mean([_ranks(np.stack([_stretched(*one) for one in board], axis=1)) for board in runs], axis=0)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=0)  # (M,) each
    first = min(range(len(common)), key=lambda index: (ranks[index], common[index]))
    methods = []
    for index in sorted(range(len(common)), key=lambda index: (index != first, ranks[index], common[index])):
        # A rank lies within its own interval even where resamples lean to the middle.
        rank = PointEstimate(
            float(ranks[index]), min(float(low[index]), ranks[index]), max(float(high[index]), ranks[index])
        )
        improvement = None if index == first else _improvement(points, runs, first, index, level)
        methods.append(MethodSummary(common[index], rank, improvement))
    single = any(len(point) == 1 for board in points for point in board)
    left_out = tuple(name for name in named if name not in common)
    return Summary(tuple(methods), len(boards), level, left_out, single)


def _resampled_runs(
    board: TaskScores, names: Sequence[str], resamples: int, rng: np.random.Generator
) -> list[tuple[Floats, NDArray[np.intp]]]:
    """Of each method the scores of all its runs on drawn rows, `(B, S)`, and which runs were drawn, `(B, S)`."""
    results = [board.methods[name] for name in names]
    # By the task's name: boards of one task, which share their test rows, share the draws.
    counts = draw_counts(results[0].examples, resamples, sum(board.task.encode()), results[0].groups)
    most = max(result.seeds for result in results)
    shared = rng.random((resamples, most))
    runs = []
    for result, scores in zip(results, resampled_together(results, counts), strict=True):
        chance = shared if board.paired_seeds else rng.random((resamples, most))
        runs.append((scores, (chance[:, : result.seeds] * result.seeds).astype(np.intp)))
    return runs


def _stretched(scores: Floats, drawn: NDArray[np.intp]) -> Floats:
    """Mean scores of resamples, `(B,)`, whose spread over S runs is that of S - 1 degrees of freedom."""
    seeds = scores.shape[1]
    mean: Floats = scores.mean(axis=1)
    if seeds < 2:
        return mean
    moved = np.take_along_axis(scores, drawn, axis=1).mean(axis=1) - mean
    stretched: Floats = mean + np.sqrt(seeds / (seeds - 1)) * moved
    return stretched


def _ranks(scores: Floats) -> Floats:
    """Of each row, `(B, M)`: 1 is the highest score."""
    return np.asarray(stats.rankdata(-scores, axis=1), dtype=np.float64)


def _above(first: Floats, second: Floats) -> Floats:
    """Share of pairs of runs that the first wins: `(B, S)` and `(B, T)` to `(B,)`."""
    difference = first[:, :, None] - second[:, None, :]
    share: Floats = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2))
    return share


def _improvement(
    points: list[list[Floats]],
    runs: list[list[tuple[Floats, NDArray[np.intp]]]],
    first: int,
    second: int,
    level: float,
) -> PointEstimate:
    value = float(np.mean([_above(board[first][None], board[second][None])[0] for board in points]))
    drawn = np.mean(
        [_above(*(np.take_along_axis(*board[index], axis=1) for index in (first, second))) for board in runs], axis=0
    )
    low, high = (float(end) for end in np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)))
    # Of two methods with three runs each three comparisons are independent, not nine.
    compared = sum(min(len(board[first]), len(board[second])) for board in points)
    below, above = wilson_sides(value, compared, level)
    return PointEstimate(value, min(low, value - below), max(high, value + above))
