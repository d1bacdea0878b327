"""BitFit: train biases only; where a linear has none, one is created at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows, zeros
from dollartune.methods.space import LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class BitFitConfig(SiteMethodConfig):
    """A trained bias at each chosen linear."""

    # The upper end of what Ben Zaken et al. searched on BERT, 1e-4 to 1e-3.
    lr: float = 1e-3
    where: str = "all_linear"
    """Linears (and, as `norm`, normalizations) whose bias is trained."""
    create: bool = True
    """Create biases (at zero) where the family has none, as reference 001 does on FLAN-T5; else those sites are left
    out."""


class BiasShift(Delta):
    """y + b, b (1, out) from zero: the change of the bias, whether or not there was one."""

    def __init__(self, features: int, channels_first: bool = False) -> None:
        super().__init__()
        self.bias = zeros(1, features)
        self.channels_first = channels_first
        """Whether outputs are (rows, features, height, width), as those of norms in convolutional backbones."""

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        if self.channels_first:  # a norm gives what it was given: (1, out, 1, 1) -> (rows, out, height, width)
            return self.bias.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2)).expand(x.shape[0], -1, *x.shape[2:])
        # (1, out) -> (batch, tokens, out), without copying
        return self.bias.to(x.dtype).expand(*x.shape[:-1], -1)

    def affine(self) -> tuple[Tensor | None, Tensor | None] | None:
        if self.channels_first:  # a server's plan has features last
            return None
        return None, self.bias  # no scale: a server adds the shifts of all its adapters in one go

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.bias[0] if bias is None else bias + self.bias[0]


class BitFit(Method[BitFitConfig]):
    """Bias-terms fine-tuning: y = W x + (b + Δb), Δb (out,) from zero.

    Trainable: sum of out over the chosen sites. Training Δb from zero equals training b itself under AdamW without
    weight decay. Exactly mergeable (a family without biases gets them in the merged checkpoint only where it has a
    place for them).

    Source: Ben Zaken et al. 2021, "BitFit"; created biases as in reference 001, A.3.
    """

    name = "bitfit"
    aliases = ("bias", "bias_only")
    branch = "specification"
    Config = BitFitConfig
    kinds = ("linear", "norm")
    capabilities = Capabilities(mergeable=True)
    small_lr = 0.01
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(2e-4, 2e-2)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        chosen = super().sites(anatomy)
        sites = tuple(site for site in chosen if site.bias or (self.config.create and site.kind == "linear"))
        if not sites:
            raise UserError(
                f"bitfit: nothing that where: {self.config.where!r} selects in this backbone has a bias.",
                hint="Set create: true to add biases.",
            )
        return sites

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> BiasShift:
        first = (
            isinstance(module, nn.BatchNorm2d | nn.GroupNorm) or getattr(module, "data_format", "") == "channels_first"
        )
        return BiasShift(site.out_features, channels_first=site.kind == "norm" and first)

    def count(self, site: Site) -> int:
        return site.out_features
