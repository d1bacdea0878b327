"""Frozen linear layers on a CPU, through oneDNN.

torch sends fp32 matrix products to MKL, which runs at half of oneDNN's speed on processors that are not Intel's. In bf16
oneDNN is used anyway; called directly it adds the bias while it writes the result instead of before. The weight stays as
it is, no second copy is made: oneDNN reads it transposed for the backward pass.

Frozen means that no gradient of the weight is asked for; then the input need not be saved either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dollartune.attachment.fast.processor import cpu_has_bf16, is_intel

_WORTHWHILE = 1 << 22
"""Multiplications in a product from which the way through Python costs less than it gains."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b by oneDNN. x (..., in), weight (out, in) in any layout of memory, bias (out,); one dtype, fp32 or bf16."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen and the module's own: it outlives the graph and never changes
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # gradients come as views of what follows (a transposed attention output); oneDNN would copy them row by row
        return product(gradients[0].contiguous(), ctx.weight.t(), None), None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b with a gradient for x alone. Shapes as in `product`, as `torch.nn.functional.linear`."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return product(x, weight, bias)


def fast_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A forward function for a frozen linear module on this processor; None where its own is as good.

    Weights without contents count as this processor's: a plan passes them. The function falls back to the plain product where
    the weight is another one than now (full tuning and functional calls put their own values in its place), the input's dtype
    is another one, or the product is too small to gain.
    """
    from transformers.pytorch_utils import Conv1D

    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    # exact types: a subclass (4-bit linears) computes something else
    if type(module) not in (nn.Linear, Conv1D) or weight is None or not _gains(weight, bias):
        return None
    # GPT-2's Conv1D stores (in, out); oneDNN takes any layout, so a view is enough
    stored_transposed = type(module) is Conv1D
    kernel = weight.t() if stored_transposed else weight
    plain = type(module).forward

    def forward(x: Tensor) -> Tensor:
        # full tuning and functional_call put other values where the frozen weight was, without asking
        same = module._parameters["weight"] is weight and module._parameters.get("bias") is bias
        # of the kernel: a view of a weight that is in fp32 for a while still shows what it was in half precision
        if not same or x.dtype != kernel.dtype or x.numel() * kernel.shape[0] < _WORTHWHILE or _special(x):
            return plain(module, x)  # type: ignore[no-any-return]
        return frozen_linear(x, kernel, bias)

    return forward


def _gains(weight: Tensor, bias: Tensor | None) -> bool:
    frozen = not weight.requires_grad and (bias is None or (not bias.requires_grad and bias.dtype == weight.dtype))
    if not frozen or weight.device.type not in ("cpu", "meta") or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return cpu_has_bf16()
    # on Intel processors MKL is as fast in fp32, and it is what torch was tested with
    return weight.dtype == torch.float32 and not is_intel()


def _special(x: Tensor) -> bool:
    """Whether x is more than plain numbers: under a transform of torch.func, or under autocast."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.is_autocast_enabled("cpu")
