"""Offsets per class that make a measure best on validation rows: thresholds, for more than two classes.

    answer = argmax over classes of (log-probability + offset)

For measures that count rare classes as much as common ones (macro-F1, balanced accuracy, the recall of one class) the most likely
class is not the best answer. Offsets cost nothing when serving. They are chosen on validation rows, never on rows that are
scored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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


def answers(log_probabilities: Tensor, offsets: Tensor) -> Tensor:
    """(rows,) class indices."""
    return (log_probabilities.double() + offsets).argmax(1)
