"""Logits in fp32 from hidden states in bf16: the head's product alone is computed in fp32.

    hidden (places, d) bf16 ── · Wᵀ, a piece of the vocabulary at a time ──> logits (places, vocabulary) fp32

Between 16 and 32, where a language model's logits lie, bf16 knows every eighth: label words tie, and the first one wins. What a
model does after its head (soft-capping, scales) it does to the fp32 logits.

Whoever chooses the next token needs no more than the likeliest ones to be told apart:

    logits bf16 ── the 16 highest of each row ──> their products anew in fp32, in place of the rounded ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.backbones.swapped_forward import swapped_forward
from dollartune.backbones.token_table import output_head

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel

_PIECE = 1 << 23
"""Weights that are cast to fp32 at a time (32 MiB): a vocabulary of 256,000 as a whole would take gigabytes."""

_LIKELIEST = 16
"""Logits of a place that are computed anew: more than the tokens that usually lie within a step of bf16 of the likeliest. In
SmolLM2-135M's shape they cost 1 % of a step on a CPU, and the whole head in fp32 a quarter."""


@contextmanager
def exact_head(attached: RoutedModel) -> Iterator[None]:
    """Within the block, the head of a language model in bf16 or fp16 gives fp32 logits.

    For scoring: few places are read there. Training's losses are sums over places, whose rounding does not add up, and keep the
    faster product.
    """
    head = _half_head(attached)
    with swapped_forward([] if head is None else [(head, _by(head, fp32_product))]):
        yield


@contextmanager
def exact_likeliest(attached: RoutedModel) -> Iterator[None]:
    """Within the block, the head of a language model in bf16 or fp16 gives fp32 logits of the last place of each row, of which
    the likeliest are exact.

    For writing: where the two likeliest tokens tie in bf16, the rows beside a row would decide which of them it writes.
    """
    head = _half_head(attached)
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][..., -1:, :], *args[1:]))
    try:
        with swapped_forward([(head, _by(head, likeliest_in_fp32))]):
            yield
    finally:
        handle.remove()


def _half_head(attached: RoutedModel) -> nn.Linear | None:
    """The head, where it is a plain linear in bf16 or fp16."""
    head = output_head(attached.model)
    # exact type: 4-bit and 8-bit linears are subclasses that compute something else
    return head if type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16) else None


def _by(head: nn.Linear, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Callable[[Tensor], Tensor]:
    hook: Any = head.__dict__.get("_hf_hook")  # accelerate's: fetches weights that were put away

    def forward(x: Tensor) -> Tensor:
        if hook is None:
            return product(x, head.weight, head.bias)
        (x,), _ = hook.pre_forward(head, x)
        logits: Tensor = hook.post_forward(head, product(x, head.weight, head.bias))
        return logits

    return forward


def fp32_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in fp32, whatever the dtypes. x (..., in), weight (out, in), bias (out,)."""
    x = x.float()
    rows = max(1, _PIECE // weight.shape[1])
    pieces = [functional.linear(x, piece.float()) for piece in weight.split(rows)]
    logits = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return logits if bias is None else logits + bias.float()


def likeliest_in_fp32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, of which the highest of each place are computed in fp32 and the others are rounded. Shapes as `fp32_product`."""
    logits = functional.linear(x, weight, bias)
    likeliest = logits.topk(min(_LIKELIEST, logits.shape[-1]), dim=-1).indices  # (..., 16)
    exact = (weight[likeliest].float() @ x.float().unsqueeze(-1)).squeeze(-1)
    if bias is not None:
        exact = exact + bias[likeliest].float()
    return logits.float().scatter(-1, likeliest, exact)
