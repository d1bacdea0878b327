"""Virtual tokens: how they enter embeddings, masks and positions, for rows that may have different numbers of them.

    decoder      [unused (masked) | virtual | tokens | padding]     positions count what is not masked
    encoder      [virtual | tokens | padding]                       rows are compacted, so positions just run on

Rows of one batch may belong to adapters with 0, 20 and 100 virtual tokens; each row's result equals its result alone.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.methods.edits import VirtualTokens

if TYPE_CHECKING:
    from dollartune.attach.attached import Attached


def prepare_inputs(
    attached: Attached, inputs: dict[str, Any], prompt_lengths: Tensor | None, generating: bool = False
) -> tuple[dict[str, Any], int]:
    """Turns plain inputs into what the backbone needs under the current route.

    Returns:
        The model's keyword arguments, and by how many places the answer positions moved.
    """
    inputs = dict(inputs)
    kind = attached.anatomy.kind
    if not attached.batch_rows:
        first = next(v for v in inputs.values() if isinstance(v, Tensor))
        attached.batch_rows = first.shape[0]
    _set_prompt_masks(attached, inputs, prompt_lengths)
    if kind == "vision" or not any(a.adapter and (a.adapter.virtual or a.adapter.prefixes) for a in attached.route):
        return inputs, 0
    if kind == "encoder_decoder":
        if "input_ids" in inputs:
            inputs["inputs_embeds"], inputs["attention_mask"], _ = _embed(attached, "encoder", inputs.pop("input_ids"), inputs)
        shift = 0
        if "decoder_input_ids" in inputs and _has_virtual(attached, "decoder"):
            ids = inputs.pop("decoder_input_ids")
            mask = inputs.get("decoder_attention_mask")
            embeddings, mask, shift = _embed(attached, "decoder", ids, {"attention_mask": mask})
            inputs["decoder_inputs_embeds"], inputs["decoder_attention_mask"] = embeddings, mask
        return inputs, shift
    stack = "decoder" if kind == "decoder" else "encoder"
    shift = 0
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    if _has_virtual(attached, stack):
        inputs["inputs_embeds"], mask, shift = _embed(attached, stack, inputs.pop("input_ids"), {"attention_mask": mask})
    inputs["attention_mask"] = mask
    if kind == "decoder" and _accepts(type(attached.model), "position_ids"):
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0) + _position_offsets(attached, mask.shape[0])
    return inputs, shift


def insert_virtual(
    attached: Attached, stack: str, embeddings: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, int]:
    """Puts each row's virtual tokens before its embeddings (rows, tokens, d_model).

    Returns:
        Embeddings, mask, and by how many places every real token moved (the longest row's virtual tokens).
    """
    assignments = list(attached._covering(embeddings.shape[0]))
    tokens = []
    for assignment in assignments:
        edits: list[VirtualTokens] = assignment.adapter.virtual.get(stack, []) if assignment.adapter else []
        tokens.append([edit.tokens(assignment.context).to(embeddings.dtype) for edit in edits])
    lengths = [sum(t.shape[-2] for t in group) for group in tokens]
    longest = max(lengths)
    compact = attached.anatomy.kind != "decoder"
    pieces, masks = [], []
    for assignment, group, length in zip(assignments, tokens, lengths, strict=True):
        own = embeddings[assignment.rows]
        count = own.shape[0]
        block = [t if t.dim() == 3 else t.expand(count, -1, -1) for t in group]
        unused = own.new_zeros(count, longest - length, own.shape[-1])
        first = any(e.after_first for e in assignment.adapter.virtual.get(stack, [])) if assignment.adapter else False
        head, tail = (own[:, :1], own[:, 1:]) if first else (own[:, :0], own)
        pieces.append(torch.cat([head, *block, tail, unused] if compact else [unused, *block, own], dim=1))
        if mask is not None:
            row_mask = mask[assignment.rows]
            on, off = row_mask.new_ones(count, length), row_mask.new_zeros(count, longest - length)
            masks.append(torch.cat([on, row_mask, off] if compact else [off, on, row_mask], dim=1))
    return torch.cat(pieces), torch.cat(masks) if masks else None, longest


def _embed(attached: Attached, stack: str, ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Embeds tokens and puts the virtual ones in."""
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    embedding = attached.model.get_submodule(attached.anatomy.at("input", stack)[0].entry)
    embeddings, mask, shift = insert_virtual(attached, stack, embedding(ids), mask)
    assert mask is not None
    return embeddings, mask, shift


def _has_virtual(attached: Attached, stack: str) -> bool:
    return any(a.adapter is not None and a.adapter.virtual.get(stack) for a in attached.route)


def _position_offsets(attached: Attached, rows: int) -> Tensor | int:
    """Prefixes come first: a row's first token sits after its prefix, as it does when a prefix is a cache."""
    if not any(a.adapter is not None and a.adapter.prefixes for a in attached.route):
        return 0
    offsets = torch.zeros(rows, 1, dtype=torch.long, device=next(attached.model.parameters()).device)
    for assignment in attached.route:
        if assignment.adapter is not None and assignment.adapter.prefixes:
            edits = next(iter(assignment.adapter.prefixes.values()))
            offsets[assignment.rows] = sum(edit.length for _, edit in edits)
    return offsets


def _set_prompt_masks(attached: Attached, inputs: dict[str, Any], prompt_lengths: Tensor | None) -> None:
    """Tells edits which tokens are the prompt's: stack -> (rows, tokens) bool."""
    from dataclasses import replace

    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if ids is None or not attached.route:
        return
    mask = inputs.get("attention_mask")
    mask = torch.ones(ids.shape[:2], device=ids.device) if mask is None else mask
    prompt = mask.bool()
    stack = "decoder" if attached.anatomy.kind == "decoder" else "encoder"
    if prompt_lengths is not None and stack == "decoder":
        prompt = prompt & (mask.long().cumsum(-1) <= prompt_lengths[:, None])
    attached.route = tuple(
        replace(a, context=replace(a.context, prompt_mask={stack: prompt[a.rows]})) for a in attached.route
    )


@cache
def _accepts(model_class: type, argument: str) -> bool:
    return argument in inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
