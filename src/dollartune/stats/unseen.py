"""What a score would be with answers that did not happen: all five rows of a rare class found, and the sixth may be missed.

Where all rows of a class are answered alike, no resample and no jackknife sees any of them answered otherwise. A measure that
counts the class for as much as the common ones then looks surer than its few rows can make it. So the share of the class's
rows that may be answered otherwise is the side of Wilson's interval of 0 of n rows, and the score is taken again with it moved:

    side = f(C) - f(C'),    C'[r, r] = (1 - w) C[r, r],  C'[r, p] = C[r, p] + w C[r, r],  w = z^2 / (n_r + z^2)

with C the table of classes and predictions and p the wrong prediction that costs most; the largest over single classes, and over
all such classes at once, n then being their rows together. A class that is never found lengthens the other side in the same way.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Indices, Outcomes

MOST_COLUMNS = 20
"""Classes up to which each wrong prediction is tried; of more, the rarest class and "other" alone, which cost most."""


def unseen_sides(outcomes: Outcomes, level: float, wider: float) -> tuple[float, float]:
    """How far a score of a table of labels may lie below and above itself by answers that did not happen.

    Args:
        wider: by what few groups of rows widen an interval.
    """
    # Sums of zeros and ones, which can be compared for equality as means cannot.
    tables = _tables(outcomes.statistics.sum(axis=1), len(outcomes.labels))  # (S, L, L + 1)
    support, right = tables[0].sum(axis=-1), tables[..., :-1].diagonal(axis1=-2, axis2=-1)
    always = np.flatnonzero((right == support).all(axis=0) & (support > 0))
    never = np.flatnonzero((right == 0).all(axis=0) & (support > 0))
    value, z = _score(outcomes, tables), wider * float(special.ndtri((1 + level) / 2))
    below = above = 0.0
    for chosen in _alone_and_together(always):
        share = z**2 / (_units(outcomes, chosen, support) + z**2)
        for column in _columns(support, chosen):
            below = max(below, value - _score(outcomes, _missed(tables, chosen, column, share)))
    for chosen in _alone_and_together(never):
        share = z**2 / (_units(outcomes, chosen, support) + z**2)
        above = max(above, _score(outcomes, _found(tables, chosen, share)) - value)
    if outcomes.bounds is not None and value in outcomes.bounds and below == above == 0.0:
        # No row that is there moves it, as where the only class that it counts has none: nothing is known.
        return value - outcomes.bounds[0], outcomes.bounds[1] - value
    return below, above


def _tables(sums: Floats, classes: int) -> Floats:
    return sums.reshape(-1, classes, classes + 1)


def _score(outcomes: Outcomes, tables: Floats) -> float:
    return float(outcomes.score(tables.reshape(len(tables), -1) / outcomes.examples).mean())


def _units(outcomes: Outcomes, chosen: Indices, support: Floats) -> float:
    """How many rows some classes have; where rows come in groups, how many groups these are of."""
    if outcomes.groups is None:
        return float(support[chosen].sum())
    truth = outcomes.statistics[0].argmax(axis=-1) // (len(outcomes.labels) + 1)  # the same for all seeds
    return float(len(np.unique(outcomes.groups[np.isin(truth, chosen)])))


def _alone_and_together(classes: Indices) -> Iterator[Indices]:
    yield from (classes[index : index + 1] for index in range(len(classes)))
    if len(classes) > 1:
        yield classes


def _columns(support: Floats, chosen: Indices) -> Iterator[Indices]:
    """For each of the classes a prediction that would be wrong."""
    count, present = len(support), np.flatnonzero(support)
    yield np.full(len(chosen), count)  # "other"
    if len(chosen) > 1:
        # Taken for each other in turn: that lowers recall and precision of all.
        yield np.roll(chosen, -1)
    elif count <= MOST_COLUMNS:
        yield from (np.array([column]) for column in range(count) if column != chosen[0])
    elif len(rivals := present[present != chosen[0]]):
        yield rivals[support[rivals].argmin()][None]


def _missed(tables: Floats, chosen: Indices, column: Indices, share: float) -> Floats:
    moved = tables.copy()
    lost = share * tables[:, chosen, chosen]
    moved[:, chosen, chosen] -= lost
    moved[:, chosen, column] += lost
    return moved


def _found(tables: Floats, chosen: Indices, share: float) -> Floats:
    moved = tables.copy()
    moved[:, chosen] *= 1 - share
    moved[:, chosen, chosen] += share * tables[0, chosen].sum(axis=-1)
    return moved
