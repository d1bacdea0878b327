"""What a server computes once while the same rows take step after step: all that depends on the route alone.

y · scale + shift      edits that are no more than this (BitFit, (IA)3), of all adapters, as one tensor each for the batch
rest                   the others, each on its rows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.methods.edits import Edit

if TYPE_CHECKING:
    from dollartune.attachment.routing import Assignment


@dataclass(frozen=True)
class EditPlan:
    """The edits at one module."""

    scale: Tensor | None
    """(rows, 1, features), or None where nothing is scaled."""
    shift: Tensor | None
    rest: Sequence[Assignment]


@dataclass
class DecodeCache:
    """Filled at the first step of a route, thrown away when its rows change."""

    prefixes: dict[str, Any] = field(default_factory=dict)
    """Attention -> the rows' prefixes."""
    plans: dict[tuple[str, str], EditPlan] = field(default_factory=dict)

    def plan(self, pieces: Iterable[Assignment], where: str, name: str, like: Tensor) -> EditPlan:
        """The plan for the `inputs` or `outputs` of a module, which `pieces` of the route edit. `like` (rows, tokens,
        features)."""
        if (where, name) not in self.plans:
            self.plans[where, name] = _plan(pieces, where, name, like)
        return self.plans[where, name]


def _plan(pieces: Iterable[Assignment], where: str, name: str, like: Tensor) -> EditPlan:
    scale = shift = None
    rest = []
    for assignment in pieces:
        (site, edit), *more = getattr(assignment.adapter, where)[name]
        # a part of a fused linear (q of qkv) would need its columns picked at every step
        affine = edit.affine() if isinstance(edit, Edit) and not more and site.part is None else None
        if affine is None:
            rest.append(assignment)
            continue
        if affine[0] is not None:
            # rows of other adapters are multiplied by 1: one product for the batch is cheaper than a slice per adapter
            scale = like.new_ones(like.shape[0], 1, like.shape[2]) if scale is None else scale
            scale[assignment.rows] = affine[0].to(like.dtype)
        if affine[1] is not None:
            shift = like.new_zeros(like.shape[0], 1, like.shape[2]) if shift is None else shift
            shift[assignment.rows] = affine[1].to(like.dtype)
    return EditPlan(scale, shift, rest)


def apply_plan(plan: EditPlan, x: Tensor, fresh: bool) -> Tensor:
    """x · scale + shift; in place where the tensor is `fresh`, else a new one (also where nothing changes it here)."""
    if fresh:
        x = x if plan.scale is None else x.mul_(plan.scale)
        return x if plan.shift is None else x.add_(plan.shift)
    if plan.scale is None:
        return x.clone() if plan.shift is None else x + plan.shift
    return x * plan.scale if plan.shift is None else torch.addcmul(plan.shift, x, plan.scale)
