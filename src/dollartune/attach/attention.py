"""Key/value prefixes through transformers' attention interface: no model code is touched.

`set_attn_implementation` is pointed at an implementation of ours that puts the prefix before keys and values, widens the
mask, and calls the implementation that was there before. The attention module finds its prefix in an attribute that
attaching sets and detaching deletes, so two models in one process do not know of each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attach.attached import Attached

_OURS = "dollartune_"
_ATTRIBUTE = "dollartune_attached"


def enable_prefixes(attached: Attached, module_names: set[str]) -> None:
    """Routes the model's attention through ours and marks the modules that have prefixes."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    model = attached.model
    if not attached.anatomy.family.attention_interface:
        raise UserError(
            f"prefix tuning needs transformers' attention interface, which {model.config.model_type!r} does not use: "  # type: ignore[union-attr]
            "it has attention code of its own. Prompt tuning and P-tuning work there."
        )
    base = model.config._attn_implementation  # type: ignore[union-attr]
    if not str(base).startswith(_OURS):
        name = f"{_OURS}{base}"
        AttentionInterface.register(name, _prefixed)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        model.set_attn_implementation(name)  # type: ignore[operator]
    for module_name in module_names:
        object.__setattr__(model.get_submodule(module_name), _ATTRIBUTE, (attached, module_name))


def restore_attention(attached: Attached) -> None:
    """Gives the model its own attention implementation back."""
    model = attached.model
    name = str(model.config._attn_implementation)  # type: ignore[union-attr]
    if name.startswith(_OURS):
        model.set_attn_implementation(name.removeprefix(_OURS))  # type: ignore[operator]
        for module in model.modules():
            module.__dict__.pop(_ATTRIBUTE, None)


def _prefixed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls. key, value (rows, kv_heads, tokens, head_size)."""
    name = str(module.config._attn_implementation).removeprefix(_OURS)  # type: ignore[union-attr]
    base = _base_attention(module, name)
    owner = module.__dict__.get(_ATTRIBUTE)
    found = _rows_prefix(*owner, key) if owner else None
    if found is None:
        return base(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]
    prefix_key, prefix_value, visible = found
    length = prefix_key.shape[2]
    mask = attention_mask
    if mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False) and settings.get("is_causal") is not False:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - query.shape[2])[None, None]
    if mask is None and not bool(visible.all()):
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if mask is not None:
        mask = mask[..., : key.shape[2]].expand(query.shape[0], -1, query.shape[2], -1)
        columns = visible[:, None, None, :].expand(-1, mask.shape[1], query.shape[2], -1)
        if mask.dtype != torch.bool:
            columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, torch.finfo(mask.dtype).min)
        mask = torch.cat([columns, mask], dim=-1)
    if settings.get("position_bias") is not None:  # T5: no distance is known to a prefix, so its bias is zero
        settings["position_bias"] = functional.pad(settings["position_bias"], (length, 0))
    key, value = torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)
    if mask is not None or query.shape[2] > 1:
        settings["is_causal"] = False
    return base(module, query, key, value, mask, **settings)  # type: ignore[no-any-return]


def _base_attention(module: nn.Module, name: str) -> Any:
    """The implementation that ours wraps; `eager` lives in the model's own file."""
    import sys

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _rows_prefix(attached: Attached, name: str, key: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(k, v) as (rows, heads, longest, head_size) and which of those places each row really has, (rows, longest) bool."""
    if not any(a.adapter is not None and name in a.adapter.prefixes for a in attached.route):
        return None
    keys, values, lengths, counts = [], [], [], []
    for assignment in attached._covering(key.shape[0]):
        edits = assignment.adapter.prefixes.get(name, []) if assignment.adapter else []
        start, stop, _ = assignment.rows.indices(key.shape[0])
        pairs = [edit.prefix(assignment.context) for _, edit in edits]
        empty = key.new_zeros(stop - start, key.shape[1], 0, key.shape[3])
        expanded = [[t.to(key.dtype).expand(stop - start, -1, -1, -1) for t in pair] for pair in pairs]
        keys.append(torch.cat([empty, *(k for k, _ in expanded)], dim=2))
        values.append(torch.cat([empty, *(v for _, v in expanded)], dim=2))
        lengths.append(keys[-1].shape[2])
        counts.append(stop - start)
    longest = max(lengths)
    padded = [functional.pad(t, (0, 0, longest - t.shape[2], 0)) for t in keys]
    padded_values = [functional.pad(t, (0, 0, longest - t.shape[2], 0)) for t in values]
    own = torch.tensor([n for n, count in zip(lengths, counts, strict=True) for _ in range(count)], device=key.device)
    visible = torch.arange(longest, device=key.device)[None, :] >= (longest - own)[:, None]
    return torch.cat(padded), torch.cat(padded_values), visible
