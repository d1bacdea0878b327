"""Metrics of predicted labels: accuracy, balanced accuracy, F1, Matthews correlation.

Notation: C[r, p] counts examples of class r that were predicted as p. A prediction of None ("other") is a wrong answer
with a column of its own: it lowers recall and raises no class's false positives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dollartune.errors import UserError, nearest
from dollartune.metrics.base import MeanMetric, Metric, MetricKind, Statistics, Takes, require_pairs

if TYPE_CHECKING:
    from dollartune.metrics.base import FloatArray, IntArray


class Accuracy(MeanMetric):
    """Share of right labels: sum_r C[r, r] / n."""

    name = "accuracy"
    kind: ClassVar[MetricKind] = "classification"
    takes: ClassVar[Takes] = "labels"

    def one(self, prediction: str | None, reference: str) -> float:
        """1 if the label is right."""
        return float(prediction == reference)

    def statistics_of_labels(self, predicted: IntArray, expected: IntArray, labels: Sequence[str]) -> Statistics:
        """Columns: whether the label is right, and 1 to count the example."""
        import numpy

        # (..., examples); -1 ("other") equals no label's index.
        right = (predicted == expected).astype(float)
        return Statistics(numpy.stack([right, numpy.ones_like(right)], axis=-1), self.score_of_sums)


class ConfusionMetric(Metric):
    """A measure that is a function of the table C."""

    kind: ClassVar[MetricKind] = "classification"
    takes: ClassVar[Takes] = "labels"

    @abstractmethod
    def from_table(self, table: FloatArray, labels: Sequence[str]) -> FloatArray:
        """From tables `(..., labels, labels + 1)`, rows true, columns predicted, "other" last, to scores `(...)`."""

    def score(self, predictions: Sequence[str | None], references: Sequence[str]) -> float:
        """The measure over all examples."""
        statistics = self.statistics(predictions, references)
        return float(statistics.score(statistics.values.sum(axis=0)))

    def statistics(self, predictions: Sequence[str | None], references: Sequence[str]) -> Statistics:
        """One column per cell of the table; an example has a 1 in its cell."""
        import numpy

        require_pairs(self.name, predictions, references)
        # Also those that are predicted only: they are false positives.
        labels = sorted({*references, *(label for label in predictions if label is not None)})
        row = {label: number for number, label in enumerate(labels)}
        # An answer that is no label falls into an extra column: it counts against recall, and is nobody's false positive.
        predicted = numpy.array([-1 if label is None else row[label] for label in predictions])
        return self.statistics_of_labels(predicted, numpy.array([row[label] for label in references]), labels)

    def statistics_of_labels(self, predicted: IntArray, expected: IntArray, labels: Sequence[str]) -> Statistics:
        """One column per cell of the table; an example has a 1 in its cell."""
        import numpy

        width = len(labels) + 1  # one column for "other"
        # The table (labels, labels + 1) as one row of cells, so that a bootstrap's sums over examples are one matrix
        # product.
        cell = expected * width + numpy.where(predicted < 0, len(labels), predicted)  # (..., examples)
        values = numpy.zeros((*cell.shape, len(labels) * width))  # (..., examples, cells)
        numpy.put_along_axis(values, cell[..., None].astype(numpy.intp), 1.0, axis=-1)

        def score(sums: FloatArray) -> FloatArray:
            return self.from_table(sums.reshape(*sums.shape[:-1], len(labels), width), labels)

        return Statistics(values, score)


class BalancedAccuracy(ConfusionMetric):
    """Mean over the classes that occur of recall C[r, r] / sum_p C[r, p]; guessing one class gives 1 / classes."""

    name = "balanced_accuracy"

    def from_table(self, table: FloatArray, labels: Sequence[str]) -> FloatArray:
        """Recall averaged over classes with examples."""
        right, support, _ = _marginals(table)
        return _mean_over_present(_ratio(right, support), support)


class MacroF1(ConfusionMetric):
    """Mean over the classes that occur of F1 = 2 C[r, r] / (sum_p C[r, p] + sum_q C[q, r])."""

    name = "f1"

    def from_table(self, table: FloatArray, labels: Sequence[str]) -> FloatArray:
        """F1 averaged over classes with examples."""
        right, support, predicted = _marginals(table)
        return _mean_over_present(_ratio(2 * right, support + predicted), support)


class OneClassMetric(ConfusionMetric):
    """A measure of one class, named after a colon."""

    what: ClassVar[str]

    def __init__(self, positive: str) -> None:
        self.positive = self.of_class = positive
        self.name = f"{self.what}:{positive}"

    def from_table(self, table: FloatArray, labels: Sequence[str]) -> FloatArray:
        """The measure of the positive class.

        Raises:
            UserError: no example has that class and no prediction names it.
        """
        if self.positive not in labels:
            raise UserError(
                f"{self.name}: no label is called {self.positive!r}; there are {list(labels)}."
                f"{nearest(self.positive, labels)}"
            )
        return self.by_class(table)[..., list(labels).index(self.positive)]

    @abstractmethod
    def by_class(self, table: FloatArray) -> FloatArray:
        """The measure of each class, `(..., labels)`."""


class BinaryF1(OneClassMetric):
    """F1 of one class: `f1:pneumonia`."""

    what = "f1"

    def by_class(self, table: FloatArray) -> FloatArray:
        """Twice the right answers over examples and predictions."""
        right, support, predicted = _marginals(table)
        return _ratio(2 * right, support + predicted)


class ClassRecall(OneClassMetric):
    """Share of one class's examples that are found: `recall:pneumonia`."""

    what = "recall"

    def by_class(self, table: FloatArray) -> FloatArray:
        """Right answers over examples."""
        right, support, _ = _marginals(table)
        return _ratio(right, support)


class Matthews(ConfusionMetric):
    """Matthews correlation for any number of classes, in [-1, 1]; 0 for a constant prediction.

    R = (c n - sum_k t_k p_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)), with c right answers of n, t_k
    examples and p_k predictions of class k, "other" being a class of predictions.

    Source: Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient, eq. 8.
    """

    name = "matthews"
    lowest = -1.0

    def from_table(self, table: FloatArray, labels: Sequence[str]) -> FloatArray:
        """The correlation."""
        import numpy

        right, support, predicted = _marginals(table)  # each (..., classes)
        # "Other" is a class that is predicted and never true: it belongs to the spread of predictions alone.
        other = table[..., -1].sum(axis=-1)
        total = support.sum(axis=-1)
        covariance = right.sum(axis=-1) * total - (support * predicted).sum(axis=-1)
        spread_predicted = total**2 - (predicted**2).sum(axis=-1) - other**2
        spread_true = total**2 - (support**2).sum(axis=-1)
        # 0 by convention where a side has one class only, as the correlation is not defined there.
        return _ratio(covariance, numpy.sqrt(spread_predicted * spread_true))


class AreaUnderCurve(Metric):
    """Area under the receiver operating curve: the chance that a random example of a class gets a higher probability of
    that class than a random example of the others; the mean over classes (one against the rest).

    With two classes and probabilities that sum to 1, both classes give the same number. Undefined when all references
    are of one class.
    """

    name = "auc"
    kind: ClassVar[MetricKind] = "classification"
    takes: ClassVar[Takes] = "probabilities"

    def score(self, predictions: Sequence[dict[str, float]], references: Sequence[str]) -> float:
        """The area; `predictions` hold a probability (or any score) for every label.

        Raises:
            UserError: fewer than two classes among the references, or a class without a probability.
        """
        from sklearn.metrics import roc_auc_score

        require_pairs(self.name, predictions, references)
        labels = sorted(set(references))
        if len(labels) < 2:
            raise UserError(f"auc needs examples of two classes; all {len(references)} references are {labels[0]!r}.")
        for label in labels:
            if any(label not in prediction for prediction in predictions):
                raise UserError(f"auc needs a probability for every label in each prediction; {label!r} is missing.")
        # One against the rest, unweighted (Hand and Till 2001 average pairs): a rare class counts as much as a common
        # one.
        areas = [
            roc_auc_score(
                [reference == label for reference in references], [prediction[label] for prediction in predictions]
            )
            for label in labels
        ]
        return float(sum(areas) / len(areas))


def _marginals(table: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Right answers, examples and predictions per class, each `(..., labels)`."""
    return table[..., :-1].diagonal(axis1=-2, axis2=-1), table.sum(axis=-1), table[..., :-1].sum(axis=-2)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """above / below, and 0 where below is 0."""
    import numpy

    above, below = numpy.asarray(above, dtype=float), numpy.asarray(below, dtype=float)
    result: FloatArray = numpy.divide(above, below, out=numpy.zeros_like(above), where=below != 0)
    return result


def _mean_over_present(values: FloatArray, support: FloatArray) -> FloatArray:
    """Mean over the last axis of the values of classes that have examples."""
    # A resample may miss a rare class; counted as 0 it would pull every bootstrap of a macro mean down.
    present = support > 0
    mean: FloatArray = (values * present).sum(axis=-1) / present.sum(axis=-1)
    return mean
