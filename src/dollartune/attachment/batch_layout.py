"""Where the padding of a batch is, which decides what a pass may leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """What a pass must know of a batch's padding before it runs. Looked up while the batch is on the host: on a GPU each look
    would wait for everything that was asked of it before."""

    right_padded: bool
    """Whether each row of each mask is ones and then zeros."""
    most_read: int
    """Positions of one row whose logits are read, at most."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any], keep: tuple[Tensor, Tensor] | None) -> Layout:
        """Of a batch's inputs and the (row, position) of its logits."""
        masks = [inputs[name] for name in ("attention_mask", "decoder_attention_mask") if name in inputs]
        padded = all(mask.dim() == 2 and right_padded(mask) for mask in masks)
        most = 0 if keep is None or not len(keep[0]) else int(torch.bincount(keep[0]).max())
        return cls(padded, most)


def right_padded(mask: Tensor) -> bool:
    """Whether each row of a mask (rows, tokens) is ones and then zeros, or ones alone."""
    return bool(mask[:, 0].all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())
