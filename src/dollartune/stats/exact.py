"""The exact test of a paired difference where few rows differ.

With six rows that two methods answer differently, all six won by one of them, neither a normal distribution nor a bootstrap
of the rows is what decides: six tosses of a coin do. If two methods are equally good, each row that differs is as likely to
differ the other way round, so that

    p = P( sum_i e_i |d_i| >= sum_i d_i ),    e_i = +1 or -1 with chance 1/2

over the rows (or groups of rows) with d_i != 0. With one seed the d_i are +1 and -1, and this is McNemar's test in its exact,
binomial form; with S seeds d_i is the mean over seeds, a multiple of 1/S, and seeds are kept together, as they answer the same
row.

Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; Fisher's randomization
test of paired differences, "The Design of Experiments", 1935, section 21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dollartune.stats.intervals import paired

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Outcomes

FEW = 25
"""Rows that differ: below so many the exact test decides too. The usual limit of the normal approximation to McNemar's test."""


@dataclass(frozen=True)
class RowsThatDiffer:
    """Rows (groups, where rows come in groups) on which two methods do not score the same."""

    won: int
    lost: int
    p_value: float
    """One-sided: chance to see the first so far ahead, were both equally good."""

    @property
    def few(self) -> bool:
        return self.won + self.lost < FEW


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
    """The exact test of `first` above `second`; None where the score is no share of zeros and ones.

    The p-value of many differing rows is not computed (it is 0 then): the normal one is as good.
    """
    if not (first.binary and second.binary) or first.examples != second.examples:
        return None
    summed: Floats = paired(first.statistics[..., 0], second.statistics[..., 0]).sum(axis=0)
    if first.groups is not None:
        summed = np.bincount(first.groups, weights=summed).astype(np.float64)
    # They are whole numbers already, up to the rounding of weighted sums.
    whole = np.rint(summed).astype(np.int64)
    won, lost = int((whole > 0).sum()), int((whole < 0).sum())
    return RowsThatDiffer(won, lost, flipped(whole) if won + lost < FEW else 0.0)
