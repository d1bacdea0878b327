"""Parallel adapters (He): a bottleneck beside a sublayer, reading what the sublayer reads.

x ──┬──> feed-forward ───────────────+──> y
    └──> D ──> activation ──> U · s ─┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import Bottleneck, BottleneckConfig, dense_count
from dollartune.methods.selection import NothingSelected
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class ParallelConfig(BottleneckConfig):
    """A bottleneck beside each chosen sublayer."""

    scale: float = Field(4.0, gt=0.0)
    """Factor s of what is added."""


class Parallel(Method[ParallelConfig]):
    """y <- y + s · (U act(D x + b_D) + b_U), x the input of the sublayer: D (b, d), U (d, b).

    Trainable: 2 d b + b + d per sublayer. Starts at the backbone exactly (U = 0, as in the paper). Together with a
    short prefix this is the mix-and-match adapter (MAM): `[prefix(tokens=30), parallel(size=512)]`.

    Source: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", table 1 and section 4.6.
    """

    name = "parallel"
    aliases = ("parallel_adapter", "par_bn", "scaled_parallel")
    branch = "addition"
    Config = ParallelConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4}
    search: ClassVar[Mapping[str, Any]] = {
        "lr": LogUniform(5e-5, 5e-3),
        "reduction": Choice(4, 16, 64),
        "scale": Choice(1.0, 4.0),
    }

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sublayers that give what they are given the width of: the others have nothing to add their input to."""
        chosen = tuple(site for site in super().sites(anatomy) if site.in_features == site.out_features)
        if not chosen:
            raise NothingSelected("parallel: every sublayer of this backbone changes the width of what enters it.")
        return chosen

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Bottleneck:
        config = self.config
        return Bottleneck(site.out_features, config.width(site.out_features), config.activation, True, config.scale)

    def count(self, site: Site) -> int:
        return dense_count(site.out_features, self.config.width(site.out_features))
