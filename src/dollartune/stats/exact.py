"""The exact test of a paired difference where few rows differ.

With six rows that two methods answer differently, all six won by one of them, neither a normal distribution nor a bootstrap
of the rows is what decides: six tosses of a coin do. If two methods are equally good, each row that differs is as likely to
differ the other way round, so that

    p = P( sum_i e_i |d_i| >= sum_i d_i ),    e_i = +1 or -1 with chance 1/2

over the rows (or groups of rows) with d_i != 0. With one seed the d_i are +1 and -1, and this is McNemar's test in its exact,
binomial form; with S seeds d_i is the mean over seeds, a multiple of 1/S, and seeds are kept together, as they answer the same
row.

Of other measures d_i is half of what the difference loses when the two swap their answers to row i. For the recall of a class
that is McNemar's test on the rows of the class; where rare classes count for as much as common ones, a few rows of theirs weigh
as much as hundreds of others, and it is these few that decide: rows are counted as

    n = (sum_i d_i^2)^2 / sum_i d_i^4

Where the measure is no sum over rows (F1, Matthews), the score is taken anew for all ways to swap, and of many rows the effects
are taken to add up, which they nearly do.

Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; Fisher's randomization
test of paired differences, "The Design of Experiments", 1935, section 21; of any measure: Yeh, "More accurate tests for the
statistical significance of result differences", 2000 (which draws the swaps, where here they are counted out).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dollartune.stats.intervals import paired

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Outcomes

FEW = 25
"""Rows that differ: below so many the exact test decides too. The usual limit of the normal approximation to McNemar's test."""


STEPS = 1000
"""Effects of measures that are no shares are rounded to so many parts of the largest one, to be counted out as whole numbers."""


ALL_WAYS = 10
"""Rows up to which all ways to swap are gone through, a thousand."""


@dataclass(frozen=True)
class RowsThatDiffer:
    """Rows (groups, where rows come in groups) on which two methods do not score the same."""

    won: int
    lost: int
    p_value: float
    """One-sided: chance to see the first so far ahead, were both equally good."""
    weighed: float | None = None
    """As how many rows of equal weight they decide; None where all weigh alike."""

    @property
    def few(self) -> bool:
        return (self.won + self.lost if self.weighed is None else self.weighed) < FEW


def flipped(differences: NDArray[np.int64]) -> float:
    """P(sum of randomly signed |d| >= sum of d), by adding one difference after the other to the distribution of sums."""
    sizes = np.abs(differences[differences != 0])
    if not sizes.size:
        return 1.0
    reach = int(sizes.sum())
    chances = np.zeros(2 * reach + 1)
    # Place `reach` is a sum of 0: sums go from -reach to reach.
    chances[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(chances)
        moved[size:] += chances[:-size] / 2
        moved[:-size] += chances[size:] / 2
        chances = moved
    return float(min(1.0, chances[reach + int(differences.sum()) :].sum()))


def rows_that_differ(first: Outcomes, second: Outcomes) -> RowsThatDiffer | None:
    """The exact test of `first` above `second`; None where they have no rows in common whose answers could be swapped.

    The p-value of many differing rows is not computed (it is 0 then): the normal one is as good.
    """
    if first.examples != second.examples or first.labels != second.labels:
        return None
    if first.binary and second.binary:
        summed: Floats = paired(first.statistics[..., 0], second.statistics[..., 0]).sum(axis=0)
        if first.groups is not None:
            summed = np.bincount(first.groups, weights=summed).astype(np.float64)
        # They are whole numbers already, up to the rounding of weighted sums.
        whole = np.rint(summed).astype(np.int64)
        differ = RowsThatDiffer(int((whole > 0).sum()), int((whole < 0).sum()), 0.0)
        return replace(differ, p_value=flipped(whole)) if differ.few else differ
    if first.statistics.shape[2] != second.statistics.shape[2]:
        return None
    return _of_any_measure(first, second)


def _of_any_measure(first: Outcomes, second: Outcomes) -> RowsThatDiffer:
    swaps = _swaps(first, second)  # (S, D, K)
    # Half of what the lead loses by each swap alone; what rounding leaves of rows that do not count is no effect.
    effects = (_leads(first, second, np.zeros_like(swaps[:, :1])) - _leads(first, second, swaps)) / 2  # (D,)
    counts = np.abs(effects) > 1e-12
    effects, swaps = effects[counts], swaps[:, counts]
    if not effects.size:
        return RowsThatDiffer(0, 0, 1.0)
    weighed = float((effects**2).sum() ** 2 / (effects**4).sum())
    differ = RowsThatDiffer(int((effects > 0).sum()), int((effects < 0).sum()), 0.0, weighed)
    if not differ.few:
        return differ
    number = len(effects)
    if number <= ALL_WAYS and 2**number * swaps[:, 0].size <= 2 * 10**7:  # 160 MB
        ways = (np.arange(2**number)[:, None] >> np.arange(number)) & 1  # (B, D), the first without a swap
        leads = _leads(first, second, ways.astype(np.float64) @ swaps)
        return replace(differ, p_value=float((leads >= leads[0] - 1e-12).mean()))
    return replace(differ, p_value=flipped(np.rint(effects / np.abs(effects).max() * STEPS).astype(np.int64)))


def _swaps(first: Outcomes, second: Outcomes) -> Floats:
    """What the first method's averages lose, and the second's gain, where the two swap their answers to a row or group.

    Returns:
        `(S, D, K)`, of the D rows or groups that they do not answer alike.
    """
    swaps = paired(first.statistics, second.statistics)  # (S, N, K)
    rows = np.flatnonzero((swaps != 0).any(axis=(0, 2)))
    swaps = swaps[:, rows] / first.examples
    if first.groups is None:
        return swaps
    names, group = np.unique(first.groups[rows], return_inverse=True)
    summed = np.zeros((len(swaps), len(names), swaps.shape[2]))
    for number, of_seed in enumerate(swaps):
        np.add.at(summed[number], group, of_seed)
    return summed


def _leads(first: Outcomes, second: Outcomes, moved: Floats) -> Floats:
    """Of the first method over the second, means over seeds, with averages moved from one to the other: `(S, B, K)` to `(B,)`."""
    # A method with one seed is held against each seed of the other.
    mine, other = (one.statistics.mean(axis=1, keepdims=True)[: len(moved)] for one in (first, second))
    leads: Floats = (first.score(mine - moved) - second.score(other + moved)).mean(axis=0)
    return leads
