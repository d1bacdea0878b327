"""When a run has diverged: its numbers are no numbers, its weights have left reason, or nothing reaches them any more.

NaN alone is not enough. With a trained weight of 1e30 some processors overflow to NaN and others go on: the norms divide the
size away, the loss stands at ln(vocabulary), the gradient is exactly 0, and nothing would tell the run from an honest one.

    non-finite loss or gradient         checked at each step; the gradient's norm is there anyway, for clipping
    weights beyond `LARGEST_WEIGHT`     checked where AdamW may have brought them so far, so never at a usual rate
    gradient exactly 0, again and again a network through which nothing passes; not at a loss of 0, where nothing is left to learn
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e6
"""No trained number of a sound run gets here: weights, norms and prompts of language models stay below 1e3, and at a rate of 1,
ten times the highest in use, AdamW would take more than a hundred thousand steps."""
_LONGEST_MOVE = 8.0
"""Of a number in one step of AdamW, in learning rates. The step is m / sqrt(v); by Cauchy and Schwarz over the two running means
it is at most (1 - beta1) / sqrt((1 - beta2) (1 - beta1² / beta2)) = 7.3, reached by gradients that grow by beta2 / beta1 a step
after a long rest (0.9 and 0.999; Kingma and Ba 2015, section 2.1, give 3.2 for a single gradient after it)."""
ZERO_GRADIENTS = 10
"""Steps in a row with a gradient of exactly 0. One alone may be a batch whose rows all were dropped or cut off by a gate; an
adapter that begins as identity (LoRA's B = 0) has a gradient from its first step on."""


def check_loss(loss: float, step: int) -> None:
    """Raises a FloatingPointError where the loss of a step is no number."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the training loss is {loss} at step {step}")


def check_gradient(norm: float, step: int) -> None:
    """Raises a FloatingPointError where the gradient of a step is no number."""
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient is {norm} at step {step}")


def zero_gradients(norm: float, loss: float, before: int, step: int) -> int:
    """Counts steps in a row whose gradient was exactly 0 while there was something to learn.

    Args:
        norm: of the gradient of everything trained, before clipping.
        before: the count so far.

    Raises:
        FloatingPointError: there were `ZERO_GRADIENTS` of them.
    """
    if norm != 0.0 or loss == 0.0:  # a loss of exactly 0: everything is learned by heart, and the gradient is rightly 0
        return 0
    if before + 1 >= ZERO_GRADIENTS:
        raise FloatingPointError(
            f"the gradient has been exactly 0 for {ZERO_GRADIENTS} steps at step {step}, at a loss of {loss:.4g}:"
            " nothing that is trained has any effect"
        )
    return before + 1


def weights_may_have_left(peak_rates: Sequence[float], steps: int) -> bool:
    """Whether so many steps at these rates can have brought a weight to `LARGEST_WEIGHT`: looking at all of them costs a pass
    through memory, so it is done only then."""
    return _LONGEST_MOVE * max(peak_rates, default=0.0) * steps >= LARGEST_WEIGHT


@torch.no_grad()
def check_weights(weights: Iterable[Tensor], step: int) -> None:
    """Raises a FloatingPointError where a trained number is larger than any sound one, or none at all."""
    for weight in weights:
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        if not largest < LARGEST_WEIGHT:  # asked this way round, as NaN is neither less nor more
            raise FloatingPointError(f"a trained weight has grown to {largest:.2g} at step {step}")
