"""Intrinsic dimension: all chosen weights move along one random subspace of d dimensions, of which only the
coordinates are trained.

θ (d) ──> Fastfood, a projection per site (D = out · in numbers, never D x d) ──> · λ of the layer ──> ΔW (out, in)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class IntrinsicConfig(SiteMethodConfig):
    """Few coordinates of a random subspace of all chosen weights."""

    lr: float = 1e-2
    where: str = "all_linear"
    """Linears whose weights move."""
    dimension: int = Field(1000, ge=1)
    """Number of trained parameters d, the layers' scales included."""
    structure_aware: bool = True
    """One trained scale per layer (SAID); without, the plain subspace (DID)."""
    projection_seed: int = 0
    """Seed of the random projection, which is drawn again when an adapter is loaded."""


class Coordinates(nn.Module):
    """What all sites share: θ (1, d - m) from zero and λ, one (1, 1) per layer, from one."""

    def __init__(self, dimension: int, layers: Sequence[str]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dimension))
        self.scales = nn.ParameterDict({layer: nn.Parameter(torch.ones(1, 1)) for layer in layers})


class Fastfood(nn.Module):
    """v (..., d) -> (..., D), a random matrix with columns of length about 1 that is never written down.

    D numbers come in blocks of n, the power of two at or above d; each block is H G Π H B v, where H is the Hadamard
    matrix, B random signs, Π a permutation and G normal numbers. Stores 3 bytes for each of the D outputs.

    Source: Le et al. 2013, "Fastfood", equation 4. One permutation serves all blocks of a site.
    """

    def __init__(self, dimension: int, size: int, seed: int) -> None:
        super().__init__()
        self.size = size
        self.block = 2 ** math.ceil(math.log2(max(2, dimension)))
        blocks = math.ceil(size / self.block)
        generator = torch.Generator().manual_seed(seed)
        # a plan makes it without contents, and there nothing can be drawn
        empty = torch.empty(0).device.type == "meta"
        # Drawn on the processor: CUDA's generator gives other numbers, and an adapter must mean the same everywhere.
        signs = (
            torch.empty(blocks, self.block)
            if empty
            else torch.randint(0, 2, (blocks, self.block), generator=generator) * 2 - 1
        )
        gauss = torch.empty(blocks, self.block) if empty else torch.randn(blocks, self.block, generator=generator)
        order = torch.empty(self.block) if empty else torch.randperm(self.block, generator=generator)
        self.signs = nn.Buffer(signs.to(torch.int8), persistent=False)
        # int8 signs and fp16 numbers: 3 bytes for each of D outputs; they are random anyway.
        self.gauss = nn.Buffer(gauss.half(), persistent=False)
        self.order = nn.Buffer(order.long(), persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        v = nn.functional.pad(v, (0, self.block - v.shape[-1])).unsqueeze(-2)  # (..., 1, n)
        mixed = hadamard(v * self.signs)[..., self.order] * self.gauss  # (..., blocks, n)
        out = hadamard(mixed).flatten(-2)[..., : self.size]  # each number has variance n |v|²
        result: Tensor = out / math.sqrt(self.block * self.size)
        return result


def hadamard(x: Tensor) -> Tensor:
    """H x along the last dimension n, a power of two, unnormalized: as two small products, since H_ab = H_a ⊗ H_b."""
    n = x.shape[-1]
    # Two factors of about √n: n √n operations as dense products, which a processor does faster than log n passes over
    # memory.
    rows = 2 ** (int(math.log2(n)) // 2)
    left, right = (hadamard_matrix(size, x.device, x.dtype) for size in (rows, n // rows))
    result: Tensor = (left @ x.unflatten(-1, (rows, n // rows)) @ right).flatten(-2)
    return result


@cache
def hadamard_matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The Hadamard matrix (n, n) of ±1 in Sylvester's order, n a power of two; kept, since every pass needs it."""
    # Kept for training too, which cannot use a matrix that was made while a prediction ran.
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, device=device, dtype=dtype)
        while matrix.shape[0] < n:
            matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


class SubspaceDelta(Delta):
    """x (λ P θ)ᵀ, P θ read as a matrix (out, in)."""

    def __init__(self, site: Site, coordinates: Coordinates, layer: str | None, seed: int) -> None:
        super().__init__()
        self.shape = site.out_features, site.in_features
        self.theta = coordinates.theta
        self.scale = coordinates.scales[layer] if layer is not None else None
        self.projection = Fastfood(self.theta.shape[-1], site.out_features * site.in_features, seed)

    def change(self) -> Tensor:
        """ΔW (out, in)."""
        change: Tensor = self.projection(self.theta).view(self.shape)
        return change if self.scale is None else change * self.scale

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        return x @ self.change().to(x.dtype).mT

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.change(), bias


class Intrinsic(Method[IntrinsicConfig]):
    """θ_D = θ_D0 + λ_layer · P(θ_d): D weights move along d coordinates through a fixed random P.

    θ starts at zero and λ at one, so training starts at the backbone. Trainable: d in all, of which one per layer is
    its λ (SAID); DID has none of those. Mergeable. Each forward pass computes the D numbers anew, in O(D √d).

    Source: Aghajanyan et al. 2020, "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning",
    equations 1 to 3; Li et al. 2018. Columns of P have length 1 per site, where the paper's have it over all of θ;
    embeddings, biases and norms stay as they are.
    """

    name = "intrinsic"
    aliases = ("said", "did", "intrinsic_dimension", "intrinsic_said")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"did": {"structure_aware": False}}
    branch = "reparameterization"
    Config = IntrinsicConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, stackable=False)
    tiny: ClassVar[Mapping[str, Any]] = {"dimension": 100}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-3, 1e-1), "dimension": Choice(200, 1000, 5000)}

    def mistake(self, anatomy: Anatomy) -> str | None:
        moved = sum(site.out_features * site.in_features for site in self.sites(anatomy))
        if self.config.dimension <= moved:
            return None
        return f"dimension {self.config.dimension:,} is above the {moved:,} weights that it moves."

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> Coordinates:
        layers = list(dict.fromkeys(layer_of(site) for site in sites)) if self.config.structure_aware else []
        if len(layers) >= self.config.dimension:
            raise UserError(
                f"intrinsic: dimension {self.config.dimension} is used up by the scales of {len(layers)} layers.",
                hint="Raise dimension, choose fewer layers, or set structure_aware: false.",
            )
        return Coordinates(self.config.dimension - len(layers), layers)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> SubspaceDelta:
        assert isinstance(shared, Coordinates)
        seed = zlib.crc32(f"{self.config.projection_seed}/{site.name}".encode())  # generators on the CPU read 32 bits
        return SubspaceDelta(site, shared, layer_of(site) if self.config.structure_aware else None, seed)

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        return self.config.dimension


def layer_of(site: Site) -> str:
    """Name of the layer a site is in, as a key: `decoder/3`."""
    return f"{site.stack}/{site.layer}"
