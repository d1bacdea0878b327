"""LoHa: an update that is the Hadamard product of two low-rank products.

x (tokens, in) ──> W (out, in) ──────────────────────────────+──> y (tokens, out)
      └──> scale · (B1 A1) ⊙ (B2 A2)  (out, in) ─────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows, dropout, kaiming_uniform, zeros
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, selections
from dollartune.methods.space import Choice, LogUniform


class LoHaConfig(SiteMethodConfig):
    """A Hadamard product of two low-rank updates of each chosen linear."""

    where: str = "self_attn.q self_attn.v cross_attn.q cross_attn.v"
    """Linear layers to update."""
    rank: int = Field(8, ge=1)
    """Rank r of each factor; the update's rank is up to r²."""
    alpha: float = 8.0
    """Numerator of the scale alpha / r."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the update's input, in training."""


class HadamardLowRank(Delta):
    """scale · dropout(x) ((B1 A1) ⊙ (B2 A2))ᵀ."""

    scalars = ("scale",)

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.B1 = kaiming_uniform(out_features, rank)  # (out, r)
        self.A1 = kaiming_uniform(rank, in_features)  # (r, in)
        self.B2 = kaiming_uniform(out_features, rank)
        self.A2 = zeros(rank, in_features)
        self.scale = scale
        self.dropout = dropout

    def update(self) -> Tensor:
        """(out, in), or (rows, out, in) where stacked."""
        return (self.B1 @ self.A1) * (self.B2 @ self.A2)

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        x = dropout(x, self.dropout, rows, self.key)
        return (x @ self.update().to(x.dtype).mT) * self.scale

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self.update(), bias


class LoHa(Method[LoHaConfig]):
    """Low-rank Hadamard product: y = W x + scale · ((B1 A1) ⊙ (B2 A2)) x.

    A1, A2 (r, in), B1, B2 (out, r); A2 starts at zero, so training starts at the backbone. Trainable: 2 r (in + out) per
    linear. Mergeable.

    Source: Hyeon-Woo et al. 2022, "FedPara"; initial values as in the peft library.
    """

    name = "loha"
    branch = "reparameterization"
    Config = LoHaConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, peft_type="LOHA")
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "rank": Choice(2, 4, 8, 16)}

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> HadamardLowRank:
        c = self.config
        return HadamardLowRank(site.in_features, site.out_features, c.rank, c.alpha / c.rank, c.dropout)

    def count(self, site: Site) -> int:
        return 2 * self.config.rank * (site.in_features + site.out_features)

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        if any(site.part is not None or site.transposed for site, _ in items):
            raise UserError("peft's LoHa knows no fused or transposed linears.")
        tensors: dict[str, Tensor] = {}
        for site, e in items:
            for name, value in (("w1_a", e.B1), ("w1_b", e.A1), ("w2_a", e.B2), ("w2_b", e.A2)):
                tensors[f"{site.exit}.hada_{name}"] = value.detach()
        settings = {"r": self.config.rank, "alpha": self.config.alpha}
        return PeftPart("LOHA", settings, tensors, tuple(site.exit for site, _ in items))

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        tensors = {}
        for path, parts in checkpoint.modules.items():
            (site,) = checkpoint.sites(path)
            names = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}
            tensors[site] = {ours: parts[theirs] for ours, theirs in names.items()}
        own = {"rank": int(checkpoint.config["r"]), "alpha": float(checkpoint.config["alpha"])}
        return [
            ImportedPart("loha", {**own, **selection}, {site.name: tensors[site] for site in sites})
            for selection, sites in selections(list(tensors))
        ]
