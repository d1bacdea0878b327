"""Hard-concrete gates: numbers in [0, 1], many of them exactly 0 or 1, whose logits α learn by gradients.

z = clamp(σ(α + logit u)(ζ − γ) + γ, 0, 1)     u uniform in (0, 1)
P(z > 0) = σ(α − log(−γ / ζ))

Source: Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", section 2.2, with temperature 1;
γ and ζ as in the code of Guo et al. 2020 (DiffPruning).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dollartune.methods.edits import seeded_generator

LOW, HIGH = -1.5, 1.5
"""Ends γ, ζ of the stretched gate before it is cut to [0, 1]."""


def opened(logits: Tensor, seed: int | None) -> Tensor:
    """Gates of the logits' shape.

    Args:
        logits: α.
        seed: of u; None for the gates' mode, which draws nothing.
    """
    if seed is not None:
        u = torch.empty(logits.shape, device=logits.device)
        # Away from 0 and 1, whose logits are infinite.
        u.uniform_(1e-6, 1 - 1e-6, generator=seeded_generator(logits.device, seed))
        logits = logits + torch.logit(u)
    return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def probability_open(logits: Tensor) -> Tensor:
    """P(z > 0), of the logits' shape."""
    return torch.sigmoid(logits - math.log(-LOW / HIGH))  # log(−γ / ζ) is 0 for ends that are symmetric
