"""Compacter: a sequential bottleneck of Kronecker sums with shared rules and rank-one blocks.

W = Σ_i A_i ⊗ (s_i t_i)        A_i (n, n) shared by all adapters, s_i (b/n, k), t_i (k, d/n)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import KroneckerBottleneck, KroneckerConfig, Rule
from dollartune.methods.selection import Selection
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class CompacterConfig(KroneckerConfig):
    """Compact bottlenecks after each chosen sublayer."""

    plus_plus: bool = False
    """Compacter++: after the feed-forward only."""
    rank: int = Field(1, ge=1)
    """Rank k of the blocks s_i t_i."""


class Compacter(Method[CompacterConfig]):
    """y <- y + U act(D y + b_D) + b_U with D, U = Σ_i A_i ⊗ (s_i t_i); the A_i (n, n, n) are shared by all adapters.

    Trainable: 2 k (d + b) + b + d per sublayer and n³ once. Starts at the backbone exactly (the s_i of U are zero).

    Source: Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", equations 5 and 6;
    Compacter++ is its section 3.3. Deviation: the start is scaled so that D has the variance of a dense adapter's.
    """

    name = "compacter"
    aliases = ("compacter_adapter",)
    branch = "addition"
    Config = CompacterConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(3e-4, 3e-2), "reduction": Choice(8, 16, 32)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        config = self.config
        where = "mlp" if config.plus_plus else config.where
        return Selection(where, config.layers, config.stacks).sites(anatomy, self.kinds)

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> Rule:
        return Rule(self.config.order)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> KroneckerBottleneck:
        config, size = self.config, self.config.width(site.out_features)
        assert isinstance(shared, Rule)
        return KroneckerBottleneck(site.out_features, size, config.activation, config.order, config.rank, shared)

    def count(self, site: Site) -> int:
        d_model, size = site.out_features, self.config.width(site.out_features)
        return 2 * self.config.rank * (d_model + size) + size + d_model

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        return self.config.order**3
