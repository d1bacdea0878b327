"""VeRA: one frozen random pair of projections for all linears; only two vectors per linear are trained.

x (tokens, in) ──> W ──────────────────────────────────────────+──> y (tokens, out)
      └──> A (r, in) ──> ⊙ d (r) ──> B (out, r) ──> ⊙ b (out)  ┘      A and B random, frozen, shared
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows, dropout, zeros
from dollartune.methods.exchange import (
    Factors,
    ImportedPart,
    PeftCheckpoint,
    PeftPart,
    low_rank,
    selections,
    stored_transposed,
)
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class VeRAConfig(SiteMethodConfig):
    """Two trained vectors around frozen random projections, at each chosen linear."""

    lr: float = 1e-2
    """Peak learning rate; vectors need about ten times what LoRA's matrices do."""
    where: str = "self_attn.q self_attn.v cross_attn.q cross_attn.v"
    """Linear layers to update."""
    rank: int = Field(256, ge=1)
    """Rank r of the frozen projections; it costs r trained numbers per linear, so it is large."""
    d_initial: float = Field(0.1, gt=0.0)
    """Start of the vector d."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the update's input, in training."""
    projection_seed: int = 0
    """Seed of the projections, which are drawn again when an adapter is loaded."""


class Projections(nn.Module):
    """A (r, widest in) and B (widest out, r), drawn from a seed of their own; each site takes the corner that fits
    it."""

    def __init__(self, rank: int, in_features: int, out_features: int, seed: int) -> None:
        super().__init__()
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        # A before B from one generator: peft draws in this order, so the same seed gives the same matrices.
        self.A = nn.Buffer(self._draw(rank, in_features, generator), persistent=False)
        self.B = nn.Buffer(self._draw(out_features, rank, generator), persistent=False)

    @staticmethod
    def _draw(rows: int, columns: int, generator: torch.Generator) -> Tensor:
        matrix = torch.empty(rows, columns)
        if matrix.device.type == "meta":
            return matrix
        bound = math.sqrt(6.0 / columns)  # Kaiming, for a rectifier
        return matrix.uniform_(-bound, bound, generator=generator)


class RandomProjection(Delta):
    """b ⊙ (B (d ⊙ (A dropout(x))))."""

    def __init__(self, site: Site, projections: Projections, d_initial: float, dropout: float) -> None:
        super().__init__()
        self.projection_seed = projections.seed
        self.projections = [projections]  # in a list: they belong to the part, which holds them once
        self.in_features, self.out_features = site.in_features, site.out_features
        self.d = nn.Parameter(torch.full((1, projections.A.shape[0]), d_initial))  # (1, r)
        self.b = zeros(1, site.out_features)  # (1, out)
        self.dropout = dropout

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of this site."""
        shared = self.projections[0]
        # A corner, which is a view: one pair of matrices in memory for all sites.
        return shared.A[:, : self.in_features], shared.B[: self.out_features]

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        a, b = self.matrices()
        x = dropout(x, self.dropout, rows, self.key)
        inner = (x @ a.to(x.dtype).mT) * self.d.to(x.dtype)  # (rows, tokens, r)
        return (inner @ b.to(x.dtype).mT) * self.b.to(x.dtype)  # (rows, tokens, out)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        a, b = self.matrices()
        return weight + (self.b.mT * b) @ (self.d.mT * a), bias

    def factors(self) -> list[Factors]:
        """The update as one term B A of a LoRA."""
        a, b = self.matrices()
        return [((self.d.mT * a).detach(), (self.b.mT * b).detach(), 1.0)]


class VeRA(Method[VeRAConfig]):
    """Vector-based random matrix adaptation: y = W x + b ⊙ B (d ⊙ A x).

    A (r, in) and B (out, r) are frozen, uniform in ±sqrt(6 / fan_in), the corners of one pair that all sites share; d
    (r) starts at 0.1 and b (out) at zero, so training starts at the backbone. Trainable: r + out per linear.
    Mergeable. The projections are not stored: their seed is.

    Source: Kopiczko et al. 2023, "VeRA", equation 2. Initial values and the shared pair as in the peft library, so that
    the vectors of separate linears can be exchanged; there a fused q/k/v has one d for all three, here each has its
    own.
    """

    name = "vera"
    branch = "reparameterization"
    Config = VeRAConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, peft_type="VERA")
    tiny: ClassVar[Mapping[str, Any]] = {"rank": 64, "dropout": 0.2}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-3, 1e-1), "rank": Choice(64, 256, 1024)}

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> Projections:
        widest_in, widest_out = max(site.in_features for site in sites), max(site.out_features for site in sites)
        return Projections(self.config.rank, widest_in, widest_out, self.config.projection_seed)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> RandomProjection:
        assert isinstance(shared, Projections)
        return RandomProjection(site, shared, self.config.d_initial, self.config.dropout)

    def count(self, site: Site) -> int:
        return self.config.rank + site.out_features

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """VERA with its projections; on a fused linear a LoRA of the same rank: there q, k and v have one vector d."""
        if any(site.part is not None for site, _ in items):
            return low_rank([(site, edit.factors()) for site, edit in items])
        projections = items[0][1].projections[0]
        tensors = {".vera_A": projections.A, ".vera_B": projections.B}
        for site, edit in items:
            tensors[f"{site.exit}.vera_lambda_d"], tensors[f"{site.exit}.vera_lambda_b"] = (
                edit.d.detach()[0],
                edit.b.detach()[0],
            )
        settings = {
            "r": self.config.rank,
            "projection_prng_key": self.config.projection_seed,
            "save_projection": True,
            "vera_dropout": 0.0,
            "d_initial": self.config.d_initial,
            "fan_in_fan_out": stored_transposed(items),
            "bias": "none",
        }
        return PeftPart("VERA", settings, tensors, tuple(site.exit for site, _ in items))

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """VeRA where the projections are those of the seed; else, and on fused linears, a LoRA of the same rank."""
        rank = int(checkpoint.config.get("r", 256))
        stored = checkpoint.modules.pop("", {})
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        for path, tensors in checkpoint.modules.items():
            if tensors.keys() != {"vera_lambda_d", "vera_lambda_b"}:
                raise UserError(
                    f"the peft adapter has {sorted(tensors)} at {path!r}; expected vera_lambda_b, vera_lambda_d."
                )
            vectors[path] = tensors["vera_lambda_d"].flatten(), tensors["vera_lambda_b"].flatten()
        sites = [site for path in vectors for site in checkpoint.sites(path)]
        widest_in = max(site.in_features for site in sites)
        widest_out = max(site.fused_features for site in sites)
        seed = int(checkpoint.config.get("projection_prng_key", 0))
        drawn = Projections(rank, widest_in, widest_out, seed)
        projections = stored.get("vera_A", drawn.A), stored.get("vera_B", drawn.B)
        # To the bit: a torch version that draws other numbers would make another adapter.
        same = torch.equal(projections[0], drawn.A) and torch.equal(projections[1], drawn.B)
        chosen = selections(sites) if same and not any(site.part for site in sites) else []
        # a part of the sites alone would draw smaller projections, so each must have the widest linear of all
        whole = all(
            max(site.in_features for site in group) == widest_in
            and max(site.out_features for site in group) == widest_out
            for _, group in chosen
        )
        if not chosen or not whole:
            return _as_lora(checkpoint, sites, vectors, projections)
        settings = {
            "rank": rank,
            "projection_seed": seed,
            "dropout": float(checkpoint.config.get("vera_dropout", 0.0)),
        }
        return [
            ImportedPart(
                "vera",
                {**settings, **selection},
                {site.name: {"d": vectors[site.exit][0][None], "b": vectors[site.exit][1][None]} for site in group},
            )
            for selection, group in chosen
        ]


def _as_lora(
    checkpoint: PeftCheckpoint,
    sites: Sequence[Site],
    vectors: Mapping[str, tuple[Tensor, Tensor]],
    projections: tuple[Tensor, Tensor],
) -> list[ImportedPart]:
    """b ⊙ B (d ⊙ A x) as a LoRA: its A is diag(d) A, its B is diag(b) B, its scale 1.

    Args:
        vectors: module path -> d (r,) and b (out,).
        projections: A (r, widest in) and B (widest out, r).
    """
    a, b = projections
    rank = a.shape[0]
    checkpoint.notes.append(
        f"its frozen projections cannot be drawn again here, so it was converted to a LoRA of rank {rank}."
    )
    parts = []
    for selection, group in selections(sites):
        tensors = {}
        for site in group:
            d, lengths = vectors[site.exit]
            rows = dict(checkpoint.pieces(site.exit))[site]
            full = lengths[:, None] * b[: len(lengths)]
            tensors[site.name] = {"A": d[:, None] * a[:, : site.in_features], "B": full[rows]}
        parts.append(ImportedPart("lora", {"rank": rank, "alpha": float(rank), **selection}, tensors))
    return parts
