"""What a server computes once while the same rows take step after step: all that depends on the route alone.

y · scale + shift      edits that are no more than this (BitFit, (IA)3): in place, on their rows
rest                   the others, each on its rows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dollartune.methods.edits import Edit

if TYPE_CHECKING:
    from dollartune.attachment.routing import Assignment


@dataclass(frozen=True)
class Affine:
    """y · scale + shift for some rows."""

    rows: slice
    scale: Tensor | None
    """(rows, 1, features) or (1, features); None where nothing is scaled."""
    shift: Tensor | None

    def apply(self, y: Tensor) -> None:
        """In place, to a batch (rows, tokens, features)."""
        own = y[self.rows]
        if self.scale is not None:
            own.mul_(self.scale)
        if self.shift is not None:
            own.add_(self.shift)


@dataclass(frozen=True)
class EditPlan:
    """The edits at one module."""

    affine: Sequence[Affine]
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
    affine, rest = [], []
    for assignment in pieces:
        (site, edit), *more = getattr(assignment.adapter, where)[name]
        # a part of a fused linear (q of qkv) would need its columns picked at every step
        pair = edit.affine() if isinstance(edit, Edit) and not more and site.part is None else None
        if pair is None:
            rest.append(assignment)
        else:
            affine.append(Affine(assignment.rows, *(t if t is None else t.to(like.dtype) for t in pair)))
    return EditPlan(affine, rest)
