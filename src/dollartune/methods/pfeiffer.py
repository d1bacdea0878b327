"""Pfeiffer adapters: one bottleneck per layer, after the feed-forward only.

x ──> attention ──+──> feed-forward ──> adapter ──+──>
└─────────────────┘ └─────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import Bottleneck, BottleneckConfig, dense_count
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Site


class Pfeiffer(Method[BottleneckConfig]):
    """y <- y + U act(D y + b_D) + b_U after the feed-forward: D (b, d), U (d, b).

    Trainable: 2 d b + b + d per layer, half of Houlsby's. Starts at the backbone exactly.

    Source: Pfeiffer et al. 2021, "AdapterFusion", section 3.1 and appendix: the best of the placements they searched.
    Deviation: there the bottleneck reads the normalized sum of the feed-forward's output and the residual; here it
    reads the output alone, which every family has, norms before or after. `where: layer` puts it on the sum with the
    residual.
    """

    name = "pfeiffer"
    aliases = ("pfeiffer_adapter", "seq_bn")
    branch = "addition"
    Config = BottleneckConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "reduction": Choice(4, 16, 64)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Bottleneck:
        return Bottleneck(site.out_features, self.config.width(site.out_features), self.config.activation)

    def count(self, site: Site) -> int:
        return dense_count(site.out_features, self.config.width(site.out_features))
