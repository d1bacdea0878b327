"""Low-rank adapters: a sequential bottleneck whose two matrices are themselves products of thin factors.

y ──> (L_D R_D) ──> activation ──> (L_U R_U) ──+──>     L_D (b, r), R_D (r, d), L_U (d, r), R_U (r, b)
└──────────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import Activation, BottleneckConfig, LowRankBottleneck
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Site


class LowRankAdapterConfig(BottleneckConfig):
    """A bottleneck of low-rank matrices after each chosen sublayer."""

    lr: float = 3e-3
    where: str = "self_attn cross_attn mlp"
    """Sublayers (`self_attn`, `cross_attn`, `mlp`) or whole blocks (`layer`) that get an adapter."""
    reduction: int = Field(32, ge=1)
    """d_model over the bottleneck's width b."""
    rank: int = Field(1, ge=1)
    """Rank r of both matrices."""
    activation: Activation = "gelu"
    """Function between the two projections; `none` makes the adapter linear."""


class LowRankAdapter(Method[LowRankAdapterConfig]):
    """y <- y + L_U R_U act(L_D R_D y + b_D) + b_U.

    Trainable: 2 r (d + b) + b + d per sublayer. Starts at the backbone exactly (L_U = 0).

    Source: "Adapter-LowRank", the baseline of Karimi Mahabadi et al. 2021, "Compacter", section 5.2.
    """

    name = "low_rank_adapter"
    aliases = ("adapter_low_rank", "lowrank_adapter")
    branch = "addition"
    Config = LowRankAdapterConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4, "rank": 2}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(3e-4, 3e-2), "rank": Choice(1, 2, 4)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> LowRankBottleneck:
        config = self.config
        return LowRankBottleneck(site.out_features, config.width(site.out_features), config.activation, config.rank)

    def count(self, site: Site) -> int:
        d_model, size = site.out_features, self.config.width(site.out_features)
        return 2 * self.config.rank * (d_model + size) + size + d_model
