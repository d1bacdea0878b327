"""What a server keeps while the same rows take step after step: work that depends on the route alone is done once.

y · scale + shift      edits that are no more than this (BitFit, (IA)3), of all adapters, as one tensor each for the batch
rest                   the others, each on its rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.routing import Assignment
from dollartune.methods.edits import Edit

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached


@dataclass(frozen=True)
class Plan:
    """The edits at one module."""

    scale: Tensor | None
    """(rows, 1, features), or None where nothing is scaled."""
    shift: Tensor | None
    rest: Sequence[Assignment]


@dataclass
class Kept:
    """Filled at the first step of a route, thrown away when its rows change."""

    prefixes: dict[str, Any] = field(default_factory=dict)
    """Attention -> the rows' prefixes."""
    plans: dict[tuple[str, str], Plan] = field(default_factory=dict)

    def plan(self, attached: Attached, where: str, name: str, like: Tensor) -> Plan:
        """The plan for the `inputs` or `outputs` of a module. `like` (rows, tokens, features)."""
        if (where, name) not in self.plans:
            self.plans[where, name] = _plan(attached, where, name, like)
        return self.plans[where, name]


def _plan(attached: Attached, where: str, name: str, like: Tensor) -> Plan:
    scale = shift = None
    rest = []
    for assignment in attached.editing(where, name, like.shape[0]):
        (site, edit), *more = getattr(assignment.adapter, where)[name]
        found = edit.affine() if isinstance(edit, Edit) and not more and site.part is None else None
        if found is None:
            rest.append(assignment)
            continue
        if found[0] is not None:
            scale = like.new_ones(like.shape[0], 1, like.shape[2]) if scale is None else scale
            scale[assignment.rows] = found[0].to(like.dtype)
        if found[1] is not None:
            shift = like.new_zeros(like.shape[0], 1, like.shape[2]) if shift is None else shift
            shift[assignment.rows] = found[1].to(like.dtype)
    return Plan(scale, shift, rest)


def apply_plan(plan: Plan, x: Tensor, fresh: bool) -> Tensor:
    """x · scale + shift; in place where the tensor is `fresh`, else a new one (also where nothing changes it here)."""
    if fresh:
        x = x if plan.scale is None else x.mul_(plan.scale)
        return x if plan.shift is None else x.add_(plan.shift)
    if plan.scale is None:
        return x.clone() if plan.shift is None else x + plan.shift
    return x * plan.scale if plan.shift is None else torch.addcmul(plan.shift, x, plan.scale)
