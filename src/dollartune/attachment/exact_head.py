"""Logits in fp32 from hidden states in bf16: the head's product alone is computed in fp32.

    hidden (places, d) bf16 ── · Wᵀ, a piece of the vocabulary at a time ──> logits (places, vocabulary) fp32

Between 16 and 32, where a language model's logits lie, bf16 knows every eighth: label words tie, and the first one wins. What a
model does after its head (soft-capping, scales) it does to the fp32 logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.backbones.swapped_forward import swapped_forward

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel

_PIECE = 1 << 23
"""Weights that are cast to fp32 at a time (32 MiB): a vocabulary of 256,000 as a whole would take gigabytes."""


@contextmanager
def exact_head(attached: RoutedModel) -> Iterator[None]:
    """Within the block, the head of a language model in bf16 or fp16 gives fp32 logits.

    For scoring: few places are read there. Training's losses are sums over places, whose rounding does not add up, and keep the
    faster product.
    """
    head: Any = attached.model.get_output_embeddings() if hasattr(attached.model, "get_output_embeddings") else None  # type: ignore[operator]
    # exact type: 4-bit and 8-bit linears are subclasses that compute something else
    half = type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16)
    with swapped_forward([(head, _exact(head))] if half else []):
        yield


def _exact(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    hook: Any = head.__dict__.get("_hf_hook")  # accelerate's: fetches weights that were put away

    def forward(x: Tensor) -> Tensor:
        if hook is None:
            return fp32_product(x, head.weight, head.bias)
        (x,), _ = hook.pre_forward(head, x)
        logits: Tensor = hook.post_forward(head, fp32_product(x, head.weight, head.bias))
        return logits

    return forward


def fp32_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in fp32, whatever the dtypes. x (..., in), weight (out, in), bias (out,)."""
    x = x.float()
    rows = max(1, _PIECE // weight.shape[1])
    pieces = [functional.linear(x, piece.float()) for piece in weight.split(rows)]
    logits = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return logits if bias is None else logits + bias.float()
