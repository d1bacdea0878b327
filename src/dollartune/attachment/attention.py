"""Key/value prefixes through transformers' attention interface: no model code is touched.

`set_attn_implementation` is pointed at an implementation of ours that puts the prefix before keys and values, widens
the mask, and calls the implementation that was there before. The attention module finds its prefix in an attribute
that attaching sets and detaching deletes, so two models in one process do not know of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.backbones.device_map import execution_device, home_device
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.attachment.pass_state import PassState
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.methods.edits import KeyValuePrefix

_OURS = "dollartune_"
_ATTRIBUTE = "dollartune_attached"


def switch_attention(model: Any, before: str, after: str, function: Any = None) -> bool:
    """Gives a model the attention `after` instead of `before`, under our prefixes where it has them.

    Args:
        function: what `after` is, where transformers does not know it yet; its masks are those of `before`.

    Returns:
        Whether the model had `before`.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    now = str(model.config._attn_implementation)
    if now.removeprefix(_OURS) != before:
        return False
    if function is not None:
        # under both names: where a model has prefixes, ours stands before what it had
        for name, attention in ((after, function), (f"{_OURS}{after}", _prefixed)):
            AttentionInterface.register(name, attention)
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    # for every attention module at once: transformers looks the function up by name at each call
    model.set_attn_implementation(now.removesuffix(before) + after)
    return True


def enable_prefixes(attached: RoutedModel, module_names: set[str]) -> None:
    """Routes the model's attention through ours and marks the modules that have prefixes.

    Families with attention code of their own (BLOOM, GPT-Neo) get their prefixes as a filled cache instead, see
    `prefix_cache`; nothing is to be done for them here.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    model = attached.model
    if not attached.anatomy.family.attention_interface:
        return
    base = model.config._attn_implementation  # type: ignore[union-attr]
    # Another adapter of this model has done it already.
    if not str(base).startswith(_OURS):
        name = f"{_OURS}{base}"
        AttentionInterface.register(name, _prefixed)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        model.set_attn_implementation(name)  # type: ignore[operator]
    for module_name in module_names:
        # past nn.Module's own __setattr__, which would take the attached model for a child
        object.__setattr__(model.get_submodule(module_name), _ATTRIBUTE, (attached, module_name))


def restore_attention(attached: RoutedModel) -> None:
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
    owner: tuple[RoutedModel, str] | None = module.__dict__.get(_ATTRIBUTE)
    attached, site = owner or (None, "")
    prefix = _cached_rows_prefix(attached.state, site, key) if attached else None
    if attached and attention_mask is None and attached.state.visible_tokens is not None:
        visible = attached.state.visible_tokens.to(query.device)
        attention_mask = visible[:, None, None, :].expand(-1, 1, query.shape[2], -1)
        attention_mask = _additive(attention_mask, query.dtype) if name == "eager" else attention_mask
    if prefix is None:
        return base(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]
    if "flash" in name:
        mask = _flash_mask(
            prefix, key, attention_mask
        )  # its causal mask is aligned at the end, so it lets prefixes through
    else:
        causal = getattr(module, "is_causal", False) and settings.get("is_causal") is not False
        mask = _widened_mask(prefix, query, key, attention_mask, causal)
        # the kernels' own causal mask is square; with a prefix there are more keys than queries
        if mask is not None or query.shape[2] > 1:
            settings["is_causal"] = False
        if mask is not None and name == "eager":
            mask = _additive(mask, query.dtype)
    if (bias := settings.get("position_bias")) is not None:  # T5
        settings["position_bias"] = _widened_bias(attached, module, prefix, bias, key.shape[2])
    # After rotary embedding, which the model has done: a prefix has no position of its own.
    key, value = torch.cat([prefix.key, key], dim=2), torch.cat([prefix.value, value], dim=2)
    return base(module, query, key, value, mask, **settings)  # type: ignore[no-any-return]


def _widened_mask(prefix: _RowsPrefix, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask (rows, 1 or heads, queries, prefix + keys) for given keys; None if everything is visible."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None and causal and queries > 1:
        # with a cache the last query sees all keys, so the triangle ends at the right corner
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if mask is None:
        if prefix.log_gate is None and prefix.everywhere:
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
    # a static cache's mask is wider than the keys that were written
    mask = mask[..., :keys].expand(query.shape[0], -1, queries, -1)
    # (rows, 1 or heads, queries, longest)
    columns = prefix.visible[:, None, None, :].expand(-1, mask.shape[1], queries, -1)
    if mask.dtype == torch.bool and prefix.log_gate is None:
        return torch.cat([columns, mask], dim=-1)
    mask, columns = (_additive(m, query.dtype) for m in (mask, columns))
    if prefix.log_gate is not None:
        # Adding log g to a score multiplies its weight by g before the softmax is normalized: a gate of 0 is no prefix
        # at all.
        columns = columns + prefix.log_gate.to(query.dtype)
    return torch.cat([columns, mask], dim=-1)


def _widened_bias(attached: Any, module: Any, prefix: _RowsPrefix, bias: Tensor, keys: int) -> Tensor:
    """T5's bias (1 or rows, heads, queries, prefix + keys): zero for a prefix, which has no distance, unless it is as text."""
    length, queries = prefix.key.shape[2], bias.shape[2]
    if prefix.as_text is None:
        return functional.pad(bias, (length, 0))
    cores = attached.anatomy.at("self_attn.core", "decoder" if module.is_decoder else "encoder")
    first = attached.model.get_submodule(cores[0].exit)  # the one that holds the bias of every layer
    columns = first.compute_bias(queries, length, device=bias.device, past_seen_tokens=length + keys - queries)
    # prefixes of other rows have no distance: their columns stay 0
    columns = columns.to(bias) * prefix.as_text[:, None, None, None]
    return torch.cat([columns, bias.expand(columns.shape[0], -1, -1, -1)], dim=-1)


def _flash_mask(prefix: _RowsPrefix, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """As `_widened_mask`, for kernels that take (rows, keys) of what is no padding."""
    if prefix.log_gate is not None:
        raise UserError(
            "a gated prefix needs an additive mask, which flash attention has not.", hint="Use sdpa or eager attention."
        )
    if mask is None and prefix.everywhere:
        return None
    mask = key.new_ones(key.shape[0], key.shape[2], dtype=torch.bool) if mask is None else mask
    return torch.cat([prefix.visible.to(mask.dtype), mask], dim=-1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask
    # the least number, not -inf: a row that sees nothing would give NaN
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _base_attention(module: nn.Module, name: str) -> Any:
    """The implementation that ours wraps; `eager` lives in the model's own file."""
    import sys

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


@dataclass(frozen=True)
class _RowsPrefix:
    """The prefixes of all rows, as long as the longest; shorter ones begin with places that are not visible."""

    key: Tensor
    value: Tensor
    visible: Tensor
    """(rows, longest) bool."""
    everywhere: bool
    """Whether all of it is visible."""
    log_gate: Tensor | None
    """(rows, 1, queries, longest), added to the scores of the prefix."""
    as_text: Tensor | None = None
    """(rows,) bool, which rows' prefixes are as text; None if none is."""


def _cached_rows_prefix(state: PassState, name: str, like: Tensor) -> _RowsPrefix | None:
    """As `_rows_prefix`; while a server's route stays the same, prefixes without gates are put together once."""
    if state.decode_cache is None:
        return _rows_prefix(state, name, like)
    cached = state.decode_cache.prefixes
    if name not in cached:
        prefix = _rows_prefix(state, name, like)
        if prefix is not None and prefix.log_gate is not None:  # a gate reads the step's own tokens
            return prefix
        cached[name] = prefix
    return cached[name]  # type: ignore[no-any-return]


def _rows_prefix(state: PassState, name: str, like: Tensor) -> _RowsPrefix | None:
    """The prefix of each row at one attention, or None if no row has one. `like` (rows, heads, tokens, head_size)."""
    if not any(a.adapter is not None and name in a.adapter.prefixes for a in state.route):
        return None
    keys, values, gates, texts = [], [], [], []
    for assignment in state.covering(like.shape[0]):
        edits = assignment.adapter.prefixes.get(name, []) if assignment.adapter else []
        start, stop, _ = assignment.rows.indices(like.shape[0])
        pairs = [edit.prefix(assignment.context) for _, edit in edits]
        # rows without a prefix join with one of length 0, so that all go through one cat
        empty = like.new_zeros(stop - start, like.shape[1], 0, like.shape[3])
        expanded = [[t.to(like.dtype).expand(stop - start, -1, -1, -1) for t in pair] for pair in pairs]
        keys.append(torch.cat([empty, *(k for k, _ in expanded)], dim=2))
        values.append(torch.cat([empty, *(v for _, v in expanded)], dim=2))
        texts.append(any(edit.as_text for _, edit in edits))
        gates.append(_log_gates(state, name, [edit for _, edit in edits], slice(start, stop)))
    lengths = [k.shape[2] for k in keys]  # one per assignment
    longest = max(lengths)
    # Padded on the left, so that every row's prefix ends where its tokens begin.
    keys, values = ([functional.pad(t, (0, 0, longest - t.shape[2], 0)) for t in tensors] for tensors in (keys, values))
    ours = [torch.ones(k.shape[0], n, dtype=torch.bool, device=like.device) for n, k in zip(lengths, keys, strict=True)]
    visible = torch.cat([functional.pad(real, (longest - real.shape[1], 0)) for real in ours])
    log_gate = None
    if any(gate is not None for gate in gates):
        queries = max(gate.shape[2] for gate in gates if gate is not None)
        open_gates = [
            like.new_zeros(k.shape[0], 1, queries, 0) if g is None else g for g, k in zip(gates, keys, strict=True)
        ]
        log_gate = torch.cat([functional.pad(g, (longest - g.shape[3], 0)) for g in open_gates])
    as_text = None
    if any(texts):
        as_text = torch.cat([real.new_full(real.shape[:1], text) for real, text in zip(ours, texts, strict=True)])
    everywhere = min(lengths) == longest
    return _RowsPrefix(torch.cat(keys), torch.cat(values), visible, everywhere, log_gate, as_text)


def _log_gates(state: PassState, name: str, edits: list[KeyValuePrefix], rows: slice) -> Tensor | None:
    """(rows, 1, queries, places) logarithms of what gated prefixes let through, one number per query and prefix."""
    if all(edit.gate is None for edit in edits):
        return None
    x = state.batched(state.captured_inputs[name])[rows]  # (rows, queries, d_model)
    columns = []
    for edit in edits:
        # log 1: a prefix without a gate lets everything through
        open_gate = x.new_zeros(*x.shape[:2], 1)
        log_gate = open_gate if edit.gate is None else edit.gate.log(x)
        columns.append(log_gate.expand(-1, -1, edit.length))
    return torch.cat(columns, dim=-1)[:, None]


def prefix_cache(attached: RoutedModel, rows: int) -> tuple[Any, Tensor]:
    """Every layer's prefix as a filled key/value cache, and which of its places each row really has (rows, longest)
    bool.

    For families whose attention is code of their own.
    """
    from transformers import DynamicCache

    pairs = []
    visible = None
    dtype = next(attached.model.parameters()).dtype
    # A cache is read by layer number.
    for site in sorted(attached.anatomy.at("self_attn.core"), key=lambda site: site.layer or 0):
        device = execution_device(attached.model.get_submodule(site.exit))
        like = torch.empty(rows, site.heads, 0, site.head_size, dtype=dtype, device=device)
        prefix = _rows_prefix(attached.state, site.exit, like)
        assert prefix is not None, "prefix.check() demands one in every layer"
        if prefix.log_gate is not None:
            raise UserError("a gated prefix needs transformers' attention interface, which this family does not use.")
        pairs.append((prefix.key, prefix.value))
        visible = prefix.visible
    assert visible is not None
    return DynamicCache(pairs), visible.to(home_device(attached.model))
