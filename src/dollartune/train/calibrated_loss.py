"""The log-loss of class scores after one temperature is taken off: what says which state is best.

    loss(T) = mean over rows of -log softmax(z / T)[label], at the T that makes it least

Tuned classifiers grow too sure of themselves, and the plain log-loss rises while accuracy may still rise too. In one run of
MiniLM (full tuning, 1,400 rows of SST-2, 350 steps) the plain loss kept the state of step 79, with 0.77 on 500 test rows; it
was 0.46 at step 156 and 0.78 at the end. Other runs of that length, without choosing a state, gave 0.845. Whether this loss
chooses better on average has not been measured. One number fitted to the same rows takes the sureness away and leaves the
order of the scores; a share of right answers would do that as well, but on some hundred rows it is far coarser.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LEAST, _MOST = math.log(1e-3), math.log(50.0)
"""Of 1 / T, in logarithms: beyond, scores are constants or hard decisions."""
# 0.618...: of the two inner points one is used again after each cut, so that a round costs one evaluation.
_GOLDEN = (math.sqrt(5) - 1) / 2
_ROUNDS = 30
"""Of golden section over 10.8 logarithms: to 6e-6."""


def calibrated_losses(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(rows,) losses at the best temperature.

    Args:
        logits: (rows, classes).
        targets: (rows,) class indices.
        weights: (classes,) of each class in the loss; None: all 1.
    """
    # (rows, classes); in double, because in the last rounds two losses differ by less than fp32 resolves.
    z = logits.double()

    def losses(log_inverse: float) -> Tensor:
        each = functional.cross_entropy(z * math.exp(log_inverse), targets, reduction="none")
        return each if weights is None else each * weights.double()[targets]

    # the loss is convex in 1 / T, so it has one minimum along its logarithm
    low, high = _LEAST, _MOST
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = float(losses(left).sum()), float(losses(right).sum())
    for _ in range(_ROUNDS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = float(losses(left).sum())
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = float(losses(right).sum())
    # The losses, not T: states are compared, nothing is scaled by it later.
    return losses((low + high) / 2)


def balanced_weights(labels: Tensor) -> Tensor:
    """(classes,) weights by which every class counts the same in a loss: n / (k n_c), of mean 1 over the rows.

    Args:
        labels: (rows,) class indices; classes without a row weigh 1.
    """
    counts = torch.bincount(labels)
    there = counts > 0
    # Classes that no training row has would get an infinite weight; none of their losses occurs in training anyway.
    weights = torch.ones(len(counts))
    weights[there] = len(labels) / (int(there.sum()) * counts[there].float())
    return weights
