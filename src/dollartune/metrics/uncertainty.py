"""How uncertain a measure is over its examples, for every measure: a setting's ± beside its score on validation rows.

mean of one number per example ──> s / √n
function of sums over examples  ──> jackknife: the score without each example in turn
anything else (area under a curve) ──> bootstrap: the score of examples drawn with replacement

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 11.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.metrics.base import Metric

RESAMPLES = 50
"""Of the bootstrap: a standard error is known to a tenth then, and each one sorts all probabilities."""


def standard_error(measure: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Of the measure's score over these examples, one at least; they are taken to be independent.

    Args:
        predictions: as the measure takes them.
    """
    count = len(predictions)
    # The most that the mean of numbers between the measure's ends could have: of the rows that count, where one class does.
    of_class = 0 if measure.of_class is None else sum(one == measure.of_class for one in references)
    unknown = 0.5 * (1 - measure.lowest) / math.sqrt(of_class or count)
    if count < 2:
        return unknown
    values = measure.per_example(predictions, references)
    found = (
        statistics.stdev(values) / math.sqrt(count)
        if values is not None
        else _without_each(measure, predictions, references)
    )
    # All right, all wrong, or all answered alike: no example changes the score, and others still may.
    return found if found and math.isfinite(found) else unknown


def _without_each(measure: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    found = measure.statistics(predictions, references)
    if found is None:
        return _redrawn(measure, predictions, references)
    import numpy

    with numpy.errstate(invalid="ignore", divide="ignore"):
        without = found.score(found.values.sum(axis=0) - found.values)  # (examples,)
    without = without[numpy.isfinite(without)]  # without the only example of a class its recall is nothing
    if len(without) < 2:
        return math.nan
    return math.sqrt((len(without) - 1) * float(without.var()))


def _redrawn(measure: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    chance, rows = random.Random(0), range(len(predictions))
    scores = []
    for _ in range(RESAMPLES):
        drawn = chance.choices(rows, k=len(rows))
        try:
            scores.append(measure.score([predictions[i] for i in drawn], [references[i] for i in drawn]))
        except UserError:  # one class alone was drawn
            continue
    return statistics.stdev(scores) if len(scores) > 1 else math.nan
