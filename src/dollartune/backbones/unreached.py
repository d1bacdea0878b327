"""What of a backbone no role names: no method but full tuning can change it, and a user should be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from dollartune import format as numbers

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy

_PARTS = ("linear", "weights", "norm", "embedding", "head")
"""Kinds of site that stand for parameters; sublayers and layers are only places between them."""


@dataclass(frozen=True)
class Unreached:
    """Parameters under no role."""

    names: tuple[str, ...]
    parameters: int
    total: int

    def sentence(self) -> str:
        """For people: how many, and what share."""
        if not self.names:
            return "nothing"
        share = numbers.percent(self.parameters / self.total)
        return f"{len(self.names)} tensors, {self.parameters:,} numbers, {share} of the backbone"


def unreached(model: nn.Module, anatomy: Anatomy) -> Unreached:
    """Parameters of a model, live or on the meta device, that belong to no site; tied ones count once."""
    reached: set[int] = set()
    for site in anatomy.sites:
        if site.kind in _PARTS:
            module = model.get_submodule(site.exit)
            of_site = [module.get_parameter(site.parameter)] if site.parameter else module.parameters()
            reached |= {id(parameter) for parameter in of_site}
    left = [(name, p) for name, p in model.named_parameters() if id(p) not in reached]
    total = sum(p.numel() for p in model.parameters())
    return Unreached(tuple(name for name, _ in left), sum(p.numel() for _, p in left), total)
