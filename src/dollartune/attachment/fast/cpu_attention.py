"""Attention in bf16 on a CPU, as three products per few rows.

torch's fused attention for CPUs is slow in bf16, its backward pass above all: 5 to 10 times the time of the plain
products at the lengths of most tasks. Here a few rows at a time pass, so that their scores stay in the cache:

    P = softmax(scale · Q Kᵀ + mask)   in fp32, kept in bf16        O = P V
    dV = Pᵀ dO     dS = P ∘ (dO Vᵀ - rowsum(dO Vᵀ ∘ P))     dQ = scale · dS K     dK = scale · dSᵀ Q

P is kept for the backward pass where it is small beside a layer's other activations, and computed again elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

NAME = "cpu_sdpa"
"""Under which transformers' attention interface knows it; its masks are those of `sdpa`."""
READ = "dollartune_read"
"""Attribute of an attention module: gives, for (rows, tokens, device), the places (rows, n) where its output is read."""
_CACHED_SCORES = 1 << 19
"""Scores of one pass: in fp32 they are 2 MB."""
_KEPT_KEYS = 256
"""Most keys at which P is kept: 512 bytes per query and head."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        keep = k.shape[2] <= _KEPT_KEYS and any(ctx.needs_input_grad[:3])
        # already in the order that the output projection reads: a transposed view would be copied there
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])  # (rows, queries, heads, head_size)
        kept = []
        for rows in _pieces(q, k):
            p = _probabilities(q[rows], k[rows], _rows_of(mask, rows), scale)  # (rows, heads, queries, keys)
            out[rows].copy_((p @ v[rows].contiguous()).transpose(1, 2))
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, mask, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, *kept = ctx.saved_tensors
        g = gradients[0].transpose(1, 2)  # (rows, heads, queries, head_size)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for number, rows in enumerate(_pieces(q, k)):
            # copies of a few rows fit the cache; products of strided bf16 tensors are twice as slow
            q_, k_, v_, g_ = (t[rows].contiguous() for t in (q, k, v, g))
            p = kept[number] if kept else _probabilities(q_, k_, _rows_of(mask, rows), ctx.scale)
            dv[rows].copy_(p.mT @ g_)  # (rows, heads, keys, head_size)
            # one fused pass of torch's own backward of softmax; by hand it takes three passes over the scores
            ds = torch._softmax_backward_data(g_ @ v_.mT, p, -1, p.dtype)
            torch.mul(ds @ k_, ctx.scale, out=dq[rows])
            torch.mul(ds.mT @ q_, ctx.scale, out=dk[rows])
        return dq, dk, dv, None, None


def _pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Rows whose scores are computed together."""
    rows, heads, queries, _ = q.shape
    # rows of one piece share a batched product; one row alone would leave cores idle at short lengths
    step = max(1, _CACHED_SCORES // max(1, heads * queries * k.shape[2]))
    return (slice(start, start + step) for start in range(0, rows, step))


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else mask[rows]


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · Q Kᵀ + mask), (rows, heads, queries, keys), computed in fp32, in q's dtype."""
    scores = (q.contiguous() @ k.contiguous().mT).float()  # small copies; products of strided bf16 are twice as slow
    scores = scores.mul_(scale) if mask is None else torch.add(mask, scores, alpha=scale)
    return torch.softmax(scores, -1).to(q.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention, (rows, queries, heads, head_size): contiguous, as output projections want it.

    As `torch.nn.functional.scaled_dot_product_attention`, without dropout and without a gradient for the mask.

    Args:
        q: (rows, heads, queries, head_size). k, v: (rows, heads, keys, head_size).
        mask: broadcasts to (rows, heads, queries, keys); true where visible, or numbers to add.
        causal: query i sees keys up to i; with `mask`, not allowed.
    """
    queries, keys = q.shape[2], k.shape[2]
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        # the smallest number, not -inf: a row without any visible key would give NaN
        mask = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _Attention.apply(q, k, v, mask, scale)  # type: ignore[no-untyped-call]
    return result


def cpu_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What transformers calls instead of its `sdpa`; cases with dropout, or a trained bias of positions, go there."""
    from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, sdpa_attention_forward

    bias = settings.get("position_bias")
    trained = any(t is not None and t.requires_grad for t in (bias, attention_mask))
    # on the meta device too: a plan must trace the very products that training will run
    known = query.device.type in ("cpu", "meta") and query.dtype == key.dtype == value.dtype == torch.bfloat16
    if not known or settings.get("dropout") or trained or settings.get("cache") is not None or query.shape[2] == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]
    groups = getattr(module, "num_key_value_groups", 1)
    # Grouped queries: copies of a head's keys, as torch's batched product needs equal numbers of heads.
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = settings.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal) and attention_mask is None
    if causal:
        # a static cache is longer than what was written to it
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    if bias is not None:
        bias = bias[..., : key.shape[2]]
        attention_mask, causal = create_position_bias_mask(bias, attention_mask, causal, query, key), False
    scale = settings.get("scaling")
    read = module.__dict__.get(READ)
    positions = None if read is None else read(query.shape[0], query.shape[2], query.device)
    if positions is None:
        return attend(query, key, value, attention_mask, causal, scale), None
    return _attend_at(positions, query, key, value, attention_mask, causal, scale), None


def _attend_at(
    positions: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """As `attend` for the queries at some places (rows, n), and zeros for all others."""
    at = positions[:, None, :, None]
    if causal:
        mask = torch.arange(key.shape[2], device=positions.device) <= at
    elif mask is not None:
        mask = mask.expand(query.shape[0], -1, query.shape[2], -1)
        mask = mask.gather(2, at.expand(-1, mask.shape[1], -1, mask.shape[3]))
    chosen = query.gather(2, at.expand(-1, query.shape[1], -1, query.shape[3]))  # (rows, heads, n, head_size)
    attended = attend(chosen, key, value, mask, False, scale)
    # everything after keeps its shape; what is zero here is never read
    whole = attended.new_zeros(query.shape[0], query.shape[2], *attended.shape[2:])
    return whole.scatter(1, positions[:, :, None, None].expand(attended.shape), attended)
