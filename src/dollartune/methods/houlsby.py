"""Sequential adapters (Houlsby): a bottleneck after attention and after the feed-forward, before the residual is added.

x ──> self-attention ──> adapter ──+──> ... ──> feed-forward ──> adapter ──+──>
└──────────────────────────────────┘     └─────────────────────────────────┘
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


class HoulsbyConfig(BottleneckConfig):
    """A bottleneck after each sublayer."""

    where: str = "self_attn cross_attn mlp"
    """Sublayers (`self_attn`, `cross_attn`, `mlp`) or whole blocks (`layer`) that get an adapter."""


class Houlsby(Method[HoulsbyConfig]):
    """y <- y + U act(D y + b_D) + b_U after each sublayer: D (b, d), U (d, b).

    Trainable: 2 d b + b + d per sublayer, so twice that per encoder layer. U and b_U start at zero, so training starts
    at the backbone exactly. Cannot be merged (an activation lies between).

    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1. Deviations: the paper
    draws U from N(0, 10⁻²) and starts near the identity only, and trains the layer norms too (add `norm` to the list).
    """

    name = "houlsby"
    aliases = ("sequential", "sequential_adapter", "adapter", "double_seq_bn")
    branch = "addition"
    Config = HoulsbyConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "reduction": Choice(4, 16, 64)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Bottleneck:
        return Bottleneck(site.out_features, self.config.width(site.out_features), self.config.activation)

    def count(self, site: Site) -> int:
        return dense_count(site.out_features, self.config.width(site.out_features))
