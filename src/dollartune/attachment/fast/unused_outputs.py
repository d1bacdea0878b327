"""Inputs without what a pass over whole rows does not need: a cache of keys and values, and a mask that hides nothing.

Rows of a decoder are padded on the right, and causal attention never looks there from a real token. Without a mask the
attention kernels know by a flag what is visible, instead of reading (rows, tokens, tokens) of it. Results at real tokens
are the same; at padding they are not, and nobody reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dollartune.attachment.batch_layout import right_padded
from dollartune.backbones.forward_inputs import takes

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel


def needed_inputs(attached: RoutedModel, called: nn.Module, inputs: dict[str, object]) -> dict[str, object]:
    """Keyword arguments for what is called, the model or its body, lighter where that changes nothing at real tokens."""
    inputs = dict(inputs)
    # with a cache, the mask says where rows begin; it hides something then
    if "past_key_values" in inputs:
        return inputs
    # a cache of keys and values that nobody reads would hold every layer's until the pass ends
    inputs = keeping_nothing(called, inputs)
    mask = inputs.get("attention_mask")
    # families with attention code of their own (BLOOM) build ALiBi or windows from the mask
    causal = attached.anatomy.kind == "decoder" and attached.anatomy.family.attention_interface
    if causal and isinstance(mask, Tensor) and mask.dim() == 2:
        layout = attached.state.layout
        if layout.right_padded if layout is not None else right_padded(mask):
            del inputs["attention_mask"]
    return inputs


def keeping_nothing(called: nn.Module, inputs: dict[str, object]) -> dict[str, object]:
    """Keyword arguments for a pass from which nobody goes on; scoring of labels asks for a cache, and gets it."""
    return {"use_cache": False, **inputs} if takes(called, "use_cache") else inputs
