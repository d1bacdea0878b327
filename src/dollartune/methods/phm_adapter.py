"""PHM adapters: a sequential bottleneck whose matrices are sums of Kronecker products.

W = A_1 ⊗ B_1 + ... + A_n ⊗ B_n        A_i (n, n), B_i (b/n, d/n): 1/n of the parameters of a dense W
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import KroneckerBottleneck, KroneckerConfig, Rule
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class PHMConfig(KroneckerConfig):
    """A bottleneck of Kronecker sums after each chosen sublayer."""

    share_rule: bool = False
    """Let all adapters share the A_i, as Compacter does."""


class PHMAdapter(Method[PHMConfig]):
    """y <- y + U act(D y + b_D) + b_U with D and U parameterized hypercomplex multiplications, Σ_i A_i ⊗ B_i.

    Trainable per sublayer: 2 (n³ + d b / n) + b + d; with `share_rule`, 2 d b / n + b + d and n³ once. Starts at the
    backbone exactly (the B_i of U are zero).

    Source: "PHM-Adapter" in Karimi Mahabadi et al. 2021, "Compacter", section 3; Zhang et al. 2021. Deviation: the
    start is scaled so that D has the variance of a dense adapter's.
    """

    name = "phm_adapter"
    aliases = ("phm", "hypercomplex_adapter")
    branch = "addition"
    Config = PHMConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(3e-4, 3e-2), "order": Choice(2, 4)}

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> Rule | None:
        return Rule(self.config.order) if self.config.share_rule else None

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> KroneckerBottleneck:
        config, size = self.config, self.config.width(site.out_features)
        rule = shared if isinstance(shared, Rule) else None
        return KroneckerBottleneck(site.out_features, size, config.activation, config.order, None, rule)

    def count(self, site: Site) -> int:
        d_model, size, order = site.out_features, self.config.width(site.out_features), self.config.order
        rules = 0 if self.config.share_rule else 2 * order**3
        return rules + 2 * d_model * size // order + size + d_model

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        return self.config.order**3 if self.config.share_rule else 0
