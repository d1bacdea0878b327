"""What a measure is: a number in [0, 1] or [-1, 1], higher is better, computed from predictions and references."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dollartune.errors import UserError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    FloatArray = NDArray[numpy.float64]
    IntArray = NDArray[numpy.intp]

MetricKind = Literal["classification", "generation"]
Takes = Literal["labels", "probabilities", "texts"]


@dataclass(frozen=True)
class Statistics:
    """Additive statistics of a set of predictions: the score of any resample is a function of their sum.

    A bootstrap over test examples needs no second pass over the predictions: with counts `(resamples, examples)` of how
    often each example was drawn, `statistics.score(counts @ statistics.values)` gives all resampled scores at once.
    """

    values: FloatArray
    """Shape `(examples, k)`."""
    score: Callable[[FloatArray], FloatArray]
    """From sums of shape `(..., k)` to scores of shape `(...)`."""


class Metric(ABC):
    """A measure of predictions against references.

    Predictions are labels (None for "other": free generation named no label), probabilities (label -> number) or texts,
    as `takes` says. References are labels, or for each example one text or several.
    """

    name: str
    kind: ClassVar[MetricKind]
    takes: ClassVar[Takes]
    lowest: float = 0.0
    """The worst possible score; the best is 1."""
    of_class: str | None = None
    """The label that a measure of one class is about."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Returns the score, higher is better.

        Raises:
            UserError: no predictions, or another number of references.
        """

    def per_example(self, predictions: Sequence[Any], references: Sequence[Any]) -> list[float] | None:
        """One number per example whose mean is the score; None where the score is no mean over examples."""
        return None

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Statistics | None:
        """Additive statistics for resampling; None where there are none (the area under a curve)."""
        return None

    def score_of_sums(self, sums: FloatArray) -> FloatArray:
        """The same from stored statistics of a measure of texts: from sums `(..., k)` to scores `(...)`."""
        raise NotImplementedError(f"{self.name} has no statistics that are summed.")

    def statistics_of_labels(self, predicted: IntArray, expected: IntArray, labels: Sequence[str]) -> Statistics | None:
        """Additive statistics of a measure of labels for many trials at once; None where there are none.

        Args:
            predicted: index into `labels`, -1 for "other"; any shape `(..., examples)`.
            expected: index into `labels`, `(examples,)`.

        Returns:
            values of shape `(..., examples, k)`.
        """
        return None


class MeanMetric(Metric):
    """A measure that is the mean of one number per example."""

    @abstractmethod
    def one(self, prediction: Any, reference: Any) -> float:
        """The number of one example."""

    def per_example(self, predictions: Sequence[Any], references: Sequence[Any]) -> list[float]:
        """One number per example."""
        require_pairs(self.name, predictions, references)
        return [self.one(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """The mean over the examples."""
        values = self.per_example(predictions, references)
        return sum(values) / len(values)

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Statistics:
        """Columns: the example's number, and 1 to count it."""
        import numpy

        values = numpy.array([[value, 1.0] for value in self.per_example(predictions, references)])
        return Statistics(values, self.score_of_sums)

    def score_of_sums(self, sums: FloatArray) -> FloatArray:
        """The mean: the sum of the examples' numbers over how many they are."""
        return sums[..., 0] / sums[..., 1]  # (...)


def require_pairs(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raises a `UserError` unless there is at least one prediction, and one reference for each."""
    if len(predictions) != len(references):
        raise UserError(f"{name}: {len(predictions)} predictions, but {len(references)} references.")
    if not predictions:
        raise UserError(f"{name}: there are no predictions to score.")


def texts_of(reference: str | Sequence[str]) -> tuple[str, ...]:
    """The reference texts of one example, given as one text or as several."""
    return (reference,) if isinstance(reference, str) else tuple(reference)
