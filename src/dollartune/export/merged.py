"""Merged export: the backbone with the adapter inside, as a transformers directory that needs nothing of ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.merging import Merged, merge
from dollartune.backbones.loading import Backbone, anatomy_of, load_backbone
from dollartune.backbones.own_head import need_known_head
from dollartune.backbones.quantize import is_quantized
from dollartune.backbones.weights import module_weight
from dollartune.errors import UserError
from dollartune.export.scoring import adapter_logits, require_equal, require_same_weights, sample_inputs
from dollartune.files import drafted, need_empty

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter


@dataclass
class MergedExport:
    """What was written."""

    modules: int
    difference: float
    """Largest difference of logits between the adapter and the merged model as loaded from the directory."""
    lost: float
    """Largest share of an update that rounding to the stored type took away."""
    untuned: float
    """Largest difference of logits between the adapter and the bare backbone."""
    quantized: bool
    requantized_difference: float | None = None
    """The same difference, were the merged weights put back into 4 bits; measured from 4-bit backbones."""
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def write_merged(
    folder: Path, backbone: Backbone, adapter: Adapter, inputs: Mapping[str, Tensor] | None = None
) -> MergedExport:
    """Merges an adapter into a copy of the backbone, writes it, loads it back and compares logits.

    A 4-bit backbone is written in its compute type, which holds its 4-bit values exactly; what rounding costs is measured.

    Args:
        folder: must not exist yet, or be empty.
        inputs: examples to compare on; by default random ones.

    Raises:
        UserError: a method is not exactly mergeable, the family's checkpoint has no place for a bias that was made, or the
            merged model does not give the same logits.
    """
    need_empty(folder)
    need_known_head(backbone.model)
    given = dict(inputs or sample_inputs(backbone))
    expected = adapter_logits(backbone, adapter, given)
    untuned = float((adapter_logits(backbone, None, given) - expected).abs().max())
    quantized = _in_4_bits(backbone.model)
    # Before the copy below, so that two copies of a large model are never in memory at once.
    requantized = _requantized_difference(backbone, adapter, given, expected) if quantized else None
    model, merged = merged_copy(backbone, adapter)
    with drafted(folder) as draft:
        model.save_pretrained(draft)
        if backbone.processor is not None:
            backbone.processor.save_pretrained(draft)
        difference = _difference_of_saved(draft, backbone, model, given, expected, quantized)
    # The worst module, not the mean: one that lost its update is a broken model.
    lost = max(merged.lost.values(), default=0.0)
    return MergedExport(len(merged.modules), difference, lost, untuned, quantized, requantized)


class NoPlaceForBias(UserError):
    """No format that holds merged weights can hold these."""


@torch.no_grad()
def merged_copy(backbone: Backbone, adapter: Adapter) -> tuple[Any, Merged]:
    """A copy of the backbone with the adapter in its weights, in the compute type.

    Raises:
        NoPlaceForBias: the family's checkpoint has no place for a bias that was made.
        UserError: a method is not exactly mergeable.
    """
    model = copy.deepcopy(backbone.model)
    merged = merge(model, backbone.anatomy, adapter)
    if merged.unportable:
        raise NoPlaceForBias(
            f"merging gives {', '.join(merged.unportable[:3])} a bias, "
            f"for which {type(model).__name__}'s checkpoint has no place.",
            hint="Export with --format dollartune and serve it here.",
        )
    if _in_4_bits(backbone.model):
        _dequantize(model)
    return model, merged


def _in_4_bits(model: nn.Module) -> bool:
    return any(is_quantized(module) for module in model.modules() if getattr(module, "weight", None) is not None)


def _difference_of_saved(
    folder: Path, backbone: Backbone, model: nn.Module, inputs: dict[str, Tensor], expected: Tensor, quantized: bool
) -> float:
    what = "the merged model, loaded from its directory,"
    again = load_backbone(str(folder), backbone.objective, dtype=backbone.dtype, device=backbone.device)
    loaded = adapter_logits(again, None, inputs)
    # Products of 4-bit weights are computed in half precision, so the plain ones differ by its rounding.
    allowed = torch.bfloat16 if quantized and backbone.dtype == torch.float32 else backbone.dtype
    difference = require_equal(loaded, expected, allowed, what)
    require_same_weights(again.model, model, what)
    return difference


def _requantized_difference(backbone: Backbone, adapter: Adapter, inputs: dict[str, Tensor], expected: Tensor) -> float:
    """What it would cost to keep the merged weights in 4 bits."""
    model = copy.deepcopy(backbone.model)
    merge(model, backbone.anatomy, adapter, requantize=True)
    again = Backbone(backbone.name, model, backbone.processor, anatomy_of(model), backbone.objective)
    return float((adapter_logits(again, None, inputs) - expected).abs().max())


def _dequantize(model: Any) -> None:
    """Makes every remaining 4-bit linear a plain one and forgets the quantization, so that the checkpoint is a normal one."""
    for name, module in list(model.named_modules()):
        if getattr(module, "weight", None) is None or not is_quantized(module):
            continue
        weight = module_weight(module)
        plain = nn.Linear(
            weight.shape[1], weight.shape[0], bias=module.bias is not None, device=weight.device, dtype=weight.dtype
        )
        plain.weight.copy_(weight)
        if module.bias is not None:
            plain.bias.copy_(module.bias)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, child, plain)
    for holder, key in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(holder, key):
            delattr(holder, key)
    model.is_loaded_in_4bit = model.is_quantized = False
