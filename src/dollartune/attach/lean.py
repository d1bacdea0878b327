"""Leaves out what a pass over whole rows does not need: a cache of keys and values, and a mask that hides nothing.

Rows of a decoder are padded on the right, and causal attention never looks there from a real token. Without a mask the
attention kernels know by a flag what is visible, instead of reading (rows, tokens, tokens) of it. Results at real tokens
are the same; at padding they are not, and nobody reads them.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from dollartune.attach.attached import Attached


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
    if causal and isinstance(mask, Tensor) and mask.dim() == 2 and _right_padded(mask):
        del inputs["attention_mask"]
    return inputs


def _right_padded(mask: Tensor) -> bool:
    """Whether each row of a mask (rows, tokens) is ones and then zeros, or ones alone."""
    return bool(mask[:, 0].all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())


@cache
def _forward_parameters(model_type: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model_type.forward).parameters)
