"""What a method did on each test example, in a form that can be resampled.

Most scores are a function of averages over examples: accuracy of the average of "correct", F1 and Matthews of the
average confusion matrix, BLEU of average n-gram counts. Such a score is recomputed for thousands of resamples by one
matrix product:

    score_b = f( (1/N) sum_i counts[b, i] * statistics[i] )

Rows may come in groups that say the same (several pictures of one patient, questions on one text): resamples then draw
groups, and pseudo-values leave out a group each time (a cluster bootstrap and jackknife).

Shapes: S seeds, N examples, K statistics per example, B resamples, G groups (N where rows are on their own).

Source: Cameron, Gelbach and Miller, "Bootstrap-based improvements for inference with clustered errors", 2008; Miller, "Adding
error bars to evals", 2024, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dollartune.errors import UserError, unknown_name

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
LABEL_METRICS = ("accuracy", "balanced_accuracy", "f1", "macro_f1", "matthews")


class Sampled(Protocol):
    """What the statistics need of a method's results."""

    @property
    def metric(self) -> str: ...

    @property
    def bounds(self) -> tuple[float, float] | None: ...

    @property
    def seeds(self) -> int: ...

    @property
    def examples(self) -> int: ...

    @property
    def binary(self) -> bool:
        """Whether the score is a plain share of zeros and ones."""
        ...

    @property
    def groups(self) -> Indices | None:
        """`(N,)`, from 0 up: the group of each example; None where each is on its own."""
        ...

    def points(self) -> Floats:
        """The score of each seed, `(S,)`."""
        ...

    def resampled(self, counts: NDArray[np.float32]) -> Floats:
        """Scores when example i is drawn `counts[b, i]` times: `(B, N)` to `(B, S)`."""
        ...

    def influence(self) -> Floats:
        """Pseudo-values `N f - (N-1) f without example i`, `(S, G)`: G is N, or a number of groups of examples."""
        ...


@dataclass(frozen=True)
class Outcomes:
    """Per-example statistics of one method, `(S, N, K)`, and the score that their averages make.

    Build one with `from_values` (a mean), `from_labels` (classification) or `from_statistics`.
    """

    statistics: Floats
    """`(seeds, examples, statistics)`."""
    score: Callable[[Floats], Floats]
    """From averages `(..., K)` to scores `(...)`."""
    metric: str = "score"
    bounds: tuple[float, float] | None = None
    """The range of the score, to which intervals are clipped."""
    groups: Indices | None = None
    """`(N,)`, from 0 up without gaps: which examples come together."""
    labels: tuple[str, ...] = ()
    """Where the statistics are cells of a table of L labels: its rows, of `(L, L + 1)` cells the true label by the predicted one,
    "other" last. An example has a 1 in its cell. Empty for other statistics."""

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.statistics.shape[1:2]:
            raise UserError(
                f"groups {self.groups.shape} must name one group for each of {self.statistics.shape[1]} rows."
            )
        if self.statistics.ndim != 3 or 0 in self.statistics.shape:
            raise UserError(
                f"statistics must have the shape (seeds, examples, parts), none empty; got {self.statistics.shape}."
            )
        if self.labels and len(self.labels) * (len(self.labels) + 1) != self.statistics.shape[2]:
            raise UserError(f"a table of {len(self.labels)} labels has other cells than {self.statistics.shape[2]}.")
        if not np.isfinite(self.statistics).all():
            raise UserError("the per-example results contain NaN or infinite values; leave failed trials out.")

    @classmethod
    def from_values(
        cls, values: ArrayLike, metric: str = "accuracy", bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> Outcomes:
        """The mean of per-example values: correct or not, ROUGE per text, negative loss.

        Args:
            values: `(S, N)`, or `(N,)` for one seed.
            bounds: range of the mean; None for an unbounded one such as a loss.
        """
        array = np.atleast_2d(np.asarray(values, dtype=np.float64))
        if array.ndim != 2:
            raise UserError(f"values must have the shape (seeds, examples), got {array.shape}.")
        return cls(array[..., None], _first, metric, bounds)

    @classmethod
    def from_labels(
        cls, predictions: Any, references: Any, metric: str = "accuracy", positive: Any | None = None
    ) -> Outcomes:
        """A classification score.

        Args:
            predictions: `(S, N)` or `(N,)` labels; a prediction that is no label of `references` counts as wrong.
            references: `(N,)` labels.
            metric: one of `LABEL_METRICS`.
            positive: the label that `f1` is about (default: the last in sorted order).
        """
        if metric not in LABEL_METRICS:
            raise unknown_name("metric", metric, LABEL_METRICS)
        truth, given = np.asarray(references), np.atleast_2d(np.asarray(predictions))
        if given.shape[-1:] != truth.shape:
            raise UserError(f"predictions {given.shape} and references {truth.shape} must be (seeds, N) and (N,).")
        if metric == "accuracy":
            return cls.from_values(given == truth)
        labels = np.unique(truth)
        if metric == "f1":
            wanted = labels[-1] if positive is None else positive
            if wanted not in labels:
                raise unknown_name("positive label", str(wanted), [str(label) for label in labels])
            score: Callable[[Floats], Floats] = partial(_f1, wanted=int(np.flatnonzero(labels == wanted)[0]))
        else:
            score = _CONFUSION_SCORES[metric]
        names = tuple(str(label) for label in labels)
        return cls(_confusion(given, truth, labels), score, metric, _CONFUSION_BOUNDS[metric], labels=names)

    @classmethod
    def from_statistics(
        cls,
        statistics: ArrayLike,
        score: Callable[[Floats], Floats],
        metric: str = "score",
        bounds: tuple[float, float] | None = None,
        labels: Sequence[str] = (),
    ) -> Outcomes:
        """Any function of per-example averages, for example corpus BLEU from n-gram counts.

        Args:
            labels: where the statistics are cells of a table of labels.
        """
        return cls(np.asarray(statistics, dtype=np.float64), score, metric, bounds, labels=tuple(labels))

    @property
    def seeds(self) -> int:
        return int(self.statistics.shape[0])

    @property
    def examples(self) -> int:
        return int(self.statistics.shape[1])

    @property
    def binary(self) -> bool:
        return self.score is _first and bool(np.isin(self.statistics, (0.0, 1.0)).all())

    def points(self) -> Floats:
        return self.score(self.statistics.mean(axis=1))

    def by_example(self) -> NDArray[np.float32]:
        """`(N, S * K)`: what draws `(B, N)` are multiplied with."""
        seeds, examples, parts = self.statistics.shape
        # fp32: counts and zeros and ones are exact in it, and the product of matrices is twice as fast.
        return self.statistics.transpose(1, 0, 2).reshape(examples, seeds * parts).astype(np.float32)

    def score_drawn(self, sums: NDArray[np.float32], drawn: Floats) -> Floats:
        """From sums over drawn examples `(B, S * K)`, and how many were drawn `(B,)`, to scores `(B, S)`."""
        seeds, _, parts = self.statistics.shape
        # fp64 from here on: scores subtract nearly equal numbers (Matthews).
        means = sums.astype(np.float64) / drawn[:, None]
        return self.score(means.reshape(len(sums), seeds, parts))

    def resampled(self, counts: NDArray[np.float32]) -> Floats:
        return self.score_drawn(counts @ self.by_example(), counts.sum(axis=1, dtype=np.float64))

    def influence(self) -> Floats:
        """`(S, G)`; with groups of unequal size the score without one is taken over the rows that are left."""
        values, sizes = self.statistics, np.ones(self.examples)
        if self.groups is not None:
            sizes = np.bincount(self.groups).astype(np.float64)
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
            # Sorted by group: `reduceat` sums stretches of neighbours.
            values = np.add.reduceat(values[:, np.argsort(self.groups, kind="stable")], starts, axis=1)
        count = len(sizes)
        if count < 2:
            return self.points()[:, None]
        total = self.statistics.sum(axis=1, keepdims=True)  # (S, 1, K)
        without = self.score((total - values) / (self.examples - sizes)[:, None])  # (S, G)
        # Pseudo-values: their mean is the score without its bias, and their spread the score's own.
        return count * self.points()[:, None] - (count - 1) * without

    def grouped(self, groups: Indices | None) -> Outcomes:
        """The same results, with the groups that rows come in; None: each on its own."""
        return self if groups is None else replace(self, groups=np.unique(groups, return_inverse=True)[1])

    def first(self, examples: int) -> Outcomes:
        """Of the first test examples alone."""
        alone = replace(self, statistics=self.statistics[:, :examples], groups=None)
        return alone.grouped(None if self.groups is None else self.groups[:examples])


@dataclass(frozen=True)
class CallableOutcomes:
    """The slow way, for a score that is no function of averages: `metric_function(predictions, references)` each time.

    Influence is taken by leaving out groups of examples (a delete-a-group jackknife).
    """

    predictions: Sequence[Sequence[Any]]
    """`(S, N)`."""
    references: Sequence[Any]
    """`(N,)`."""
    metric_function: Callable[[list[Any], list[Any]], float]
    metric: str = "score"
    bounds: tuple[float, float] | None = None
    # Groups of a jackknife that would else leave out each example in turn: 50 estimate the acceleration well, at 50
    # evaluations of a score that is dear (BLEU, ROUGE).
    left_out: int = 50
    groups: Indices | None = None
    """`(N,)`, from 0 up: which examples come together, and are left out together."""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.predictions):
            if len(row) != len(self.references):
                raise UserError(f"seed {number} has {len(row)} predictions for {len(self.references)} references.")
        if not self.predictions or not self.references:
            raise UserError("no predictions to take statistics of.")

    @property
    def seeds(self) -> int:
        return len(self.predictions)

    @property
    def examples(self) -> int:
        return len(self.references)

    @property
    def binary(self) -> bool:
        return False

    def _on(self, chosen: NDArray[np.intp]) -> list[float]:
        truth = [self.references[index] for index in chosen]
        return [float(self.metric_function([row[index] for index in chosen], truth)) for row in self.predictions]

    def points(self) -> Floats:
        return np.array(self._on(np.arange(self.examples)))

    def resampled(self, counts: NDArray[np.float32]) -> Floats:
        every = np.arange(self.examples)
        return np.array([self._on(np.repeat(every, row.astype(np.intp))) for row in counts])

    def influence(self) -> Floats:
        units = np.arange(self.examples) if self.groups is None else self.groups
        count = min(self.left_out, int(units.max()) + 1)
        if count < 2:
            return self.points()[:, None]
        every = np.arange(self.examples)
        # Every count-th example: neighbours in a file are often alike, and a part should be like the whole.
        without: Floats = np.array([self._on(every[units % count != part]) for part in range(count)]).T
        pseudo: Floats = count * self.points()[:, None] - (count - 1) * without
        return pseudo


def resampled_together(methods: Sequence[Sampled], counts: NDArray[np.float32]) -> list[Floats]:
    """`resampled` of each method, `(B, S)`, with one product of matrices for all that are functions of averages."""
    averaged = [one for one in methods if isinstance(one, Outcomes)]
    columns = [one.by_example() for one in averaged]
    parts: Iterator[NDArray[np.float32]] = iter(())
    drawn = counts.sum(axis=1, dtype=np.float64)
    if columns:
        ends = np.cumsum([one.shape[1] for one in columns])[:-1]
        parts = iter(np.split(counts @ np.concatenate(columns, axis=1), ends, axis=1))
    return [
        one.score_drawn(next(parts), drawn) if isinstance(one, Outcomes) else one.resampled(counts) for one in methods
    ]


def _first(means: Floats) -> Floats:
    """The score that is itself a mean."""
    return means[..., 0]


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient with 0/0 = 0, the convention of scikit-learn's scores."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _f1(means: Floats, wanted: int) -> Floats:
    matrix = _matrix(means)
    return _divide(2 * matrix[..., wanted, wanted], matrix[..., wanted, :].sum(-1) + matrix[..., wanted].sum(-1))


def _confusion(given: NDArray[Any], truth: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """One-hot confusion matrices, `(S, N, C * (C + 1))`; the last column is for predictions that are no label."""
    classes = len(labels)
    row = np.searchsorted(labels, truth)
    column = np.full(given.shape, classes)
    for index, label in enumerate(labels):
        column[given == label] = index
    statistics = np.zeros((*given.shape, classes * (classes + 1)))
    np.put_along_axis(statistics, (row * (classes + 1) + column)[..., None], 1.0, axis=-1)
    return statistics


def _matrix(means: Floats) -> Floats:
    # Solves classes · (classes + 1) = K, the number of cells.
    classes = round((np.sqrt(4 * means.shape[-1] + 1) - 1) / 2)
    return means.reshape(*means.shape[:-1], classes, classes + 1)


def _balanced_accuracy(means: Floats) -> Floats:
    """Mean recall over the classes that occur."""
    matrix = _matrix(means)
    present = matrix.sum(-1)
    recall = _divide(np.diagonal(matrix, axis1=-2, axis2=-1), present)
    # Over classes that occur: a resample may have drawn none of a rare one.
    balanced: Floats = recall.sum(-1) / np.maximum((present > 0).sum(-1), 1)
    return balanced


def _macro_f1(means: Floats) -> Floats:
    matrix = _matrix(means)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    scores: Floats = _divide(2 * hits, matrix.sum(-1) + matrix.sum(-2)[..., :-1]).mean(-1)
    return scores


def _matthews(means: Floats) -> Floats:
    """Multi-class Matthews correlation (Gorodkin 2004); 0 where it is undefined."""
    matrix = _matrix(means)
    true, said = matrix.sum(-1), matrix.sum(-2)
    hits = np.trace(matrix[..., :-1], axis1=-2, axis2=-1)
    covariance = hits - (true * said[..., :-1]).sum(-1)
    return _divide(covariance, np.sqrt((1 - (said**2).sum(-1)) * (1 - (true**2).sum(-1))))


_CONFUSION_SCORES: dict[str, Callable[[Floats], Floats]] = {
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}
_CONFUSION_BOUNDS = {"f1": (0.0, 1.0), "balanced_accuracy": (0.0, 1.0), "macro_f1": (0.0, 1.0), "matthews": (-1.0, 1.0)}
