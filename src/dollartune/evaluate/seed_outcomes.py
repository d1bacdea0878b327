"""The seeds of one variant on the same test rows, in the form that intervals and comparisons are made of.

One way for all who print an interval: the leaderboard of a study, `evaluate`, and the card of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dollartune.metrics.base import MeanMetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dollartune.evaluate.row_outcomes import RowOutcomes
    from dollartune.metrics import Metric, Statistics
    from dollartune.stats import Interval, Outcomes


def seed_outcomes(metric: Metric, columns: Sequence[RowOutcomes]) -> Outcomes | None:
    """What the seeds did on each row; None where the measure has no form per row, or they were tested on different rows."""
    import numpy

    from dollartune.stats import Outcomes

    of_labels = metric.takes == "labels"
    statistics = label_statistics(metric, columns) if of_labels else text_statistics(metric, columns)
    if statistics is None:
        return None
    bounds = (metric.lowest, 1.0)
    if isinstance(metric, MeanMetric):
        # The numbers themselves, so that a share of zeros and ones is known for one: it gets Wilson's interval and the exact
        # test where the bootstrap sees no error.
        made = Outcomes.from_values(statistics.values[..., 0], metric.name, bounds)
    else:
        labels = labels_of(columns) if of_labels else ()
        values = numpy.asarray(statistics.values)
        made = Outcomes.from_statistics(values, statistics.score, metric.name, bounds, labels)
    return made.grouped(_groups(columns))


def interval_of(metric: Metric, columns: RowOutcomes) -> Interval | None:
    """The interval of one adapter's score over these rows.

    None where the measure has no form per row, and where the rows are one or all of one group: nothing is known of others then.
    """
    from dollartune.stats import score_interval
    from dollartune.stats.intervals import units_of

    made = seed_outcomes(metric, [columns])
    return None if made is None or units_of(made) == 1 else score_interval(made)


def _groups(columns: Sequence[RowOutcomes]) -> NDArray[Any] | None:
    """Groups of the test rows, which are the same for all seeds; None where rows are on their own or a record does not say."""
    known = [one.groups for one in columns]
    if any(one is None for one in known) or len({len(one) for one in known if one is not None}) != 1:
        return None
    return known[0]


def labels_of(columns: Sequence[RowOutcomes]) -> tuple[str, ...]:
    """Labels that any of them names, in the order of the table that `label_statistics` makes."""
    return tuple(sorted({label for one in columns for label in one.labels}))


def label_statistics(metric: Metric, columns: Sequence[RowOutcomes]) -> Statistics | None:
    """Of all seeds at once, `(seeds, rows, k)`; None where seeds were tested on different rows."""
    import numpy

    if any(one.predicted is None or one.expected is None for one in columns):
        return None
    labels = labels_of(columns)
    number = {label: index for index, label in enumerate(labels)}
    predicted, expected = [], []
    for one in columns:
        # Seeds may have stored their labels in other orders: codes are mapped to one order before they are stacked.
        codes = numpy.array([*(number[label] for label in one.labels), -1])  # the last one: "other", index -1
        predicted.append(codes[one.predicted])
        expected.append(codes[one.expected])
    # Rows are paired by position: with other expected labels they are not the same rows, and no comparison is better than a
    # wrong one.
    if len({len(rows) for rows in expected}) != 1 or any((rows != expected[0]).any() for rows in expected):
        return None
    return metric.statistics_of_labels(numpy.stack(predicted), expected[0], labels)


def text_statistics(metric: Metric, columns: Sequence[RowOutcomes]) -> Statistics | None:
    """Of all seeds, `(seeds, rows, k)`, as they were stored."""
    import numpy

    from dollartune.metrics import Statistics

    values = [one.statistics for one in columns if one.statistics is not None]
    if len(values) != len(columns) or len({one.shape for one in values}) != 1:
        return None
    return Statistics(numpy.stack(values), metric.score_of_sums)
