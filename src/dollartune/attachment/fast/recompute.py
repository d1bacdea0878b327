"""y + delta(x) with nothing saved but x, which the neighbours q, k, v (gate, up) share.

The plain way saves, for each linear, its own copy of every intermediate (x A, its dropout mask, fp32 casts). Here the
forward pass keeps x alone and the backward pass runs `delta` again, or computes the edit's own formula for its gradients;
dropout replays because its mask depends on a seed.
`y + edit.delta(x)` is the reference; `tests/attachment/fast/test_recompute.py` holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dollartune.methods.edits import Delta, Rows


class _RecomputedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edit: Delta, rows: Rows, y: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.edit, ctx.rows = edit, rows
        ctx.device_type = "cpu" if x.is_meta else x.device.type  # the planner's empty tensors know no autocast
        ctx.autocast = torch.is_autocast_enabled(ctx.device_type), torch.get_autocast_dtype(ctx.device_type)
        # through autograd, so that torch notices if someone changes them in place before the backward pass
        ctx.save_for_backward(x, *parameters)
        return y + edit.delta(x, rows).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, *parameters = ctx.saved_tensors  # x (rows, tokens, in)
        enabled, dtype = ctx.autocast
        # under autocast the formula would run in other number formats than the forward pass did
        if not enabled and _has_formula(type(ctx.edit)):
            of_x = ctx.needs_input_grad[3]
            with torch.no_grad():
                return None, None, gradient, *_by_formula(ctx.edit, x, gradient, ctx.rows, of_x)
        with torch.enable_grad(), torch.autocast(ctx.device_type, dtype=dtype, enabled=enabled):
            # cut off from the graph: this inner backward pass ends here, and the outer one goes on from what it returns
            x = x.detach().requires_grad_(ctx.needs_input_grad[3])
            delta = ctx.edit.delta(x, ctx.rows)
        wanted = [p for p in parameters if p.requires_grad]
        inputs = [x, *wanted] if ctx.needs_input_grad[3] else wanted
        # allow_unused: an edit may hold tensors that its delta does not read (frozen buffers, a closed gate).
        computed = torch.autograd.grad(delta, inputs, gradient.to(delta.dtype), allow_unused=True) if inputs else ()
        x_gradient = computed[0] if ctx.needs_input_grad[3] else None
        by_parameter = dict(zip(map(id, wanted), computed[1:] if ctx.needs_input_grad[3] else computed, strict=True))
        return None, None, gradient, x_gradient, *(by_parameter.get(id(p)) for p in parameters)


def _has_formula(kind: type[Delta]) -> bool:
    """Whether the class that says what its delta is, or one that follows it, says what its gradients are."""
    # a subclass with a delta of its own must not inherit its parent's gradients
    owner = next(one for one in kind.__mro__ if "delta" in vars(one) or "gradients" in vars(one))
    return owner is not Delta and "gradients" in vars(owner)


def _by_formula(edit: Delta, x: Tensor, gradient: Tensor, rows: Rows, of_x: bool) -> Iterator[Tensor | None]:
    dx, gradients = edit.gradients(x, gradient.to(x.dtype), rows, of_x)
    yield dx
    yield from (
        of_parameter if p.requires_grad else None for of_parameter, p in zip(gradients, edit.parameters(), strict=True)
    )


def add_delta(edit: Delta, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """y + edit.delta(x), saving no activation but x. Shapes as in `Delta.delta`."""
    # without a backward pass nothing is saved anyway, and the Function costs a few microseconds per linear
    if not torch.is_grad_enabled():
        return y + edit.delta(x, rows).to(y.dtype)
    result: Tensor = _RecomputedDelta.apply(edit, rows, y, x, *edit.parameters())  # type: ignore[no-untyped-call]
    return result
