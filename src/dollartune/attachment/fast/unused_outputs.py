"""Leaves out what a pass over whole rows does not need: a cache of keys and values, and a mask that hides nothing.

Rows of a decoder are padded on the right, and causal attention never looks there from a real token. Without a mask the
attention kernels know by a flag what is visible, instead of reading (rows, tokens, tokens) of it. Results at real tokens
are the same; at padding they are not, and nobody reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached


@dataclass(frozen=True)
class Layout:
    """What a pass must know of a batch before it runs. Looked up while the batch is on the host: on a GPU each look would
    wait for everything that was asked of it before."""

    right_padded: bool
    """Whether each row of each mask is ones and then zeros."""
    most_read: int
    """Places of one row whose logits are read, at most."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any], keep: tuple[Tensor, Tensor] | None) -> Layout:
        """Of a batch's inputs and the (row, position) of its logits."""
        masks = [inputs[name] for name in ("attention_mask", "decoder_attention_mask") if name in inputs]
        padded = all(mask.dim() == 2 and right_padded(mask) for mask in masks)
        most = 0 if keep is None or not len(keep[0]) else int(torch.bincount(keep[0]).max())
        return cls(padded, most)


def lean_inputs(attached: Attached, inputs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the model, lighter where that changes nothing at real tokens."""
    inputs = dict(inputs)
    if "past_key_values" in inputs:
        return inputs
    model_type: Any = type(attached.model)
    if "use_cache" in _forward_parameters(model_type):
        inputs.setdefault("use_cache", False)
    mask = inputs.get("attention_mask")
    causal = attached.anatomy.kind == "decoder" and attached.anatomy.family.attention_interface
    if causal and isinstance(mask, Tensor) and mask.dim() == 2:
        known = attached.layout
        if known.right_padded if known is not None else right_padded(mask):
            del inputs["attention_mask"]
    return inputs


def right_padded(mask: Tensor) -> bool:
    """Whether each row of a mask (rows, tokens) is ones and then zeros, or ones alone."""
    return bool(mask[:, 0].all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())


@cache
def _forward_parameters(model_type: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model_type.forward).parameters)
