"""AdapterDrop: bottlenecks after the feed-forward, left out of the first layers.

layer    0     1     2    ...   n-1  |   n     n+1   ...   L-1
        none  none  none  ...  none  | adapter adapter ... adapter
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method
from dollartune.methods.bottleneck import Activation, Bottleneck, BottleneckConfig, dense_count
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site
    from dollartune.methods.edits import Rows


class AdapterDropConfig(BottleneckConfig):
    """Bottlenecks in the later layers."""

    drop: int = Field(1, ge=0)
    """Number n of first layers (of each stack) without an adapter; with `robust`, the most that a training step
    drops."""
    robust: bool = False
    """Give every layer an adapter and drop the first n' in each training step, n' drawn from 0..n anew."""
    drop_at_inference: int = Field(0, ge=0)
    """With `robust`: how many first layers go without their adapter at inference."""


class DroppedBottleneck(Bottleneck):
    """A bottleneck that steps aside when its layer is among the first n'."""

    def __init__(
        self, d_model: int, size: int, activation: Activation, layer: int, most: int, at_inference: int
    ) -> None:
        super().__init__(d_model, size, activation)
        self.layer, self.most, self.at_inference = layer, most, at_inference

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        # By the step's seed: all layers of a pass, and its recomputation, draw the same number.
        dropped = random.Random(rows.seed).randint(0, self.most) if rows.training else self.at_inference
        return super().transform(x, y, rows) if self.layer >= dropped else y


class AdapterDrop(Method[AdapterDropConfig]):
    """As `pfeiffer`, y <- y + U act(D y + b_D) + b_U, in layers n..L-1 only.

    Trainable: (L - n)(2 d b + b + d); with `robust`, L (2 d b + b + d). Layers below n are frozen and have no adapter,
    so their activations need not be kept for the backward pass and, unlike their weights, can be computed once
    (trunk). Starts at the backbone exactly.

    Source: Rücklé et al. 2021, "AdapterDrop: On the Efficiency of Adapters in Transformers", section 3: specialized
    (default) and robust dropping.
    """

    name = "adapter_drop"
    aliases = ("adapterdrop",)
    branch = "addition"
    Config = AdapterDropConfig
    kinds = ("sublayer", "layer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"reduction": 4, "robust": True}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "reduction": Choice(4, 16, 64)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        chosen = super().sites(anatomy)
        if self.config.robust:
            for stack in {site.stack for site in chosen}:
                if self.config.drop >= anatomy.layer_counts[stack]:
                    raise UserError(
                        f"adapter_drop: drop {self.config.drop} would leave nothing to train in the {stack}."
                    )
            return chosen
        kept = tuple(site for site in chosen if site.layer is not None and site.layer >= self.config.drop)
        if not kept:
            raise UserError(f"adapter_drop: drop {self.config.drop} leaves no layer of {dict(anatomy.layer_counts)}.")
        return kept

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Bottleneck:
        config, d_model = self.config, site.out_features
        size = config.width(d_model)
        if not config.robust:
            return Bottleneck(d_model, size, config.activation)
        assert site.layer is not None
        return DroppedBottleneck(d_model, size, config.activation, site.layer, config.drop, config.drop_at_inference)

    def count(self, site: Site) -> int:
        return dense_count(site.out_features, self.config.width(site.out_features))
