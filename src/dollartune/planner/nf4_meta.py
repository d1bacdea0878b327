"""Linear layers in 4 bits as the planner sees them: a packed weight that is unpacked for each product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.token_table import output_head

BYTES_PER_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""NF4 with double quantization (Dettmers et al., 2023): 4 bits, one 8-bit scale for 64 weights, one fp32 for 256 scales."""


class PackedLinear(nn.Linear):
    """A linear on the meta device whose weight takes as many bytes as in NF4. It computes in the bias' or input's format."""

    def __init__(self, linear: nn.Linear) -> None:
        # Else the weight would be drawn in full before it is thrown away.
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.bias = linear.bias
        packed = torch.empty(int(linear.weight.numel() * BYTES_PER_WEIGHT), dtype=torch.uint8, device="meta")
        self.register_buffer("packed", packed)
        del self.weight
        self.register_parameter("weight", nn.Parameter(_no_bytes(linear.weight), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        result: Tensor = _Unpacked.apply(x, self.packed, self.out_features, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Unpacked(torch.autograd.Function):
    """y = x W^T + b, with W unpacked in the forward and again in the backward pass and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.out_features = out_features
        ctx.save_for_backward(packed)
        weight = _unpack(packed, x, out_features)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        (packed,) = ctx.saved_tensors
        width = round(
            packed.numel() / BYTES_PER_WEIGHT / ctx.out_features
        )  # in_features, which the packed bytes do not say
        # Unpacked anew, as bitsandbytes does: kept from the forward pass it would take the memory that 4 bits save.
        weight = gradient.new_empty(ctx.out_features, width).copy_(packed[:1])
        return gradient @ weight, None, None, None


def _unpack(packed: Tensor, x: Tensor, out_features: int) -> Tensor:
    return x.new_empty(out_features, x.shape[-1]).copy_(
        packed[:1]
    )  # a copy, so that the tracer counts one kernel that writes it


def _no_bytes(weight: Tensor) -> Tensor:
    """A tensor of the weight's shape that takes no memory of its own."""
    return torch.empty(1, dtype=weight.dtype, device="meta").expand(weight.shape)


def pack_linears(model: nn.Module) -> None:
    """Replaces every linear but the output head, as bitsandbytes does."""
    head = output_head(model)
    skipped = {"lm_head", "classifier", "score", "classification_head"}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head and name.split(".")[0] not in skipped:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], PackedLinear(module))
