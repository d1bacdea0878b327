"""Offsets per class that make a measure best on validation rows: thresholds, for more than two classes.

    answer = argmax over classes of (log-probability + offset)

For measures that count rare classes as much as common ones (macro-F1, balanced accuracy, the recall of one class) the most likely
class is not the best answer. Offsets cost nothing when serving. They are chosen on validation rows, never on rows that are
scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dollartune import metrics

_CANDIDATES = 50
"""Offsets that are tried for a class in one round: quantiles of where its rows begin to be answered otherwise."""
_ROUNDS = 3
"""Over all classes. Each raises the score or ends the search; the third hardly ever changes an answer."""


def choose_offsets(log_probabilities: Tensor, score: Callable[[Tensor], float]) -> Tensor:
    """(classes,) offsets, 0 where nothing else is better; coordinate ascent over classes.

    Args:
        log_probabilities: (rows, classes), of validation rows.
        score: of (rows,) answers as class indices; higher is better.
    """
    classes = log_probabilities.shape[1]
    offsets = torch.zeros(classes, dtype=torch.double)
    scores = log_probabilities.double()
    best = score(answers(log_probabilities, offsets))
    for _ in range(_ROUNDS):
        before = best
        for one in range(classes):
            shifted = scores + offsets
            others = shifted.clone()
            others[:, one] = -torch.inf
            # at these offsets of the class some row changes its answer; between two of them nothing does
            margins = (others.max(1).values - scores[:, one]).sort().values
            margins = margins[margins.isfinite()]
            middles = torch.cat([(margins[1:] + margins[:-1]) / 2, offsets[one : one + 1]])
            at = torch.linspace(0, len(middles) - 1, min(_CANDIDATES, len(middles))).round().long()
            for value in middles[at].tolist():
                tried = offsets.clone()
                tried[one] = value
                reached = score(answers(log_probabilities, tried))
                # of equal scores the one nearest to no offset: it leans least on these rows
                if reached > best or (reached == best and abs(value) < abs(float(offsets[one]))):
                    best, offsets = reached, tried
        if best <= before:
            break
    return offsets


@dataclass(frozen=True)
class HeldOutOffsets:
    """Offsets, and whether rows that did not choose them gain by them."""

    offsets: Tensor
    """(classes,), chosen on all rows."""
    before: float
    """The measure without offsets."""
    after: float
    """The same where each half of the rows is answered with the offsets of the other half: an honest score of offsets."""

    @property
    def worth_it(self) -> bool:
        return self.after > self.before and bool(self.offsets.any())


def held_out_offsets(
    log_probabilities: Tensor, expected: Sequence[int], labels: Sequence[str], metric: str
) -> HeldOutOffsets:
    """Offsets for a measure of labels, and what they are worth on rows that chose nothing.

    The recall of one class alone is best where that class is the only answer; offsets for it are chosen by the mean of its recall
    and that of all other rows, and are worth what that mean gains.

    Args:
        log_probabilities: (rows, classes), of validation rows.
        expected: class of each row, (rows,).
        labels: names of the classes.
        metric: name of the measure.
    """
    truth = torch.tensor(expected)
    measure = metrics.get("balanced_accuracy" if metric.startswith("recall:") else metric)
    one = labels.index(metric.partition(":")[2]) if metric.startswith("recall:") else None

    def score(rows: Tensor, predicted: Tensor) -> float:
        wanted = truth[rows]
        if one is not None:  # this class against all others
            return measure.score(["01"[int(f == one)] for f in predicted], ["01"[int(w == one)] for w in wanted])
        return measure.score([labels[int(f)] for f in predicted], [labels[int(w)] for w in wanted])

    every = torch.arange(len(truth))
    # Every other row of each class, so that a rare class is in both halves.
    order = truth.argsort(stable=True)
    halves = order[0::2].sort().values, order[1::2].sort().values
    crossed = log_probabilities.argmax(1)
    for chosen, answered in (halves, halves[::-1]):
        offsets = choose_offsets(log_probabilities[chosen], lambda predicted, rows=chosen: score(rows, predicted))  # type: ignore[misc]
        crossed[answered] = answers(log_probabilities[answered], offsets)
    return HeldOutOffsets(
        choose_offsets(log_probabilities, lambda predicted: score(every, predicted)),
        score(every, log_probabilities.argmax(1)),
        score(every, crossed),
    )


def prior_offsets(
    asked: Tensor, log_probabilities: Tensor, expected: Sequence[int], labels: Sequence[str], metric: str
) -> HeldOutOffsets:
    """Offsets that take off what a model finds likely whatever it is asked, as calibrated prompts do, and what they are worth on
    rows that chose nothing.

    Args:
        asked: (training rows, classes) log-probabilities; their labels are not looked at.
        log_probabilities: (rows, classes), of validation rows.
        expected: class of each validation row, (rows,).
        labels: names of the classes.
        metric: name of the measure.
    """
    offsets = -asked.double().mean(0)
    measure, truth = metrics.get(metric), [labels[index] for index in expected]

    def score(predicted: Tensor) -> float:
        return measure.score([labels[int(index)] for index in predicted], truth)

    before, after = score(log_probabilities.argmax(1)), score(answers(log_probabilities, offsets))
    return HeldOutOffsets(offsets - offsets.mean(), before, after)


def answers(log_probabilities: Tensor, offsets: Tensor) -> Tensor:
    """(rows,) class indices."""
    return (log_probabilities.double() + offsets).argmax(1)
