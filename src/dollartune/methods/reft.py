"""LoReFT: changes the hidden state at a few prompt positions, inside a low-rank subspace.

prompt  t1 t2 t3 t4 ... t8 t9          h at the first f and last l tokens of the prompt:
        ^^ ^^               ^^         h + Rᵀ (W h + b − R h),   R (r, d) with orthonormal rows
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Rows, Transform, zeros
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class ReFTConfig(SiteMethodConfig):
    """Low-rank interventions on hidden states."""

    lr: float = 1e-3
    where: str = "layer"
    """Blocks (`layer`) or sublayers whose output is changed."""
    rank: int = Field(4, ge=1)
    """Rank r of the subspace."""
    first: int = Field(7, ge=0)
    """Number of tokens at the prompt's beginning that are changed."""
    last: int = Field(7, ge=0)
    """Number of tokens at the prompt's end that are changed."""
    share: bool = True
    """One intervention for first and last positions; else one each."""


class Intervention(nn.Module):
    """h + Rᵀ (W h + b − R h), R (r, d), W (r, d), b (1, r)."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        rows = nn.init.orthogonal_(torch.empty(rank, d_model))  # (r, d)
        self.R = nn.Parameter(rows)  # orthonormalized when used
        self.W = nn.Parameter(rows.clone())  # a clone: both are trained, from the same values on
        self.b = zeros(1, rank)

    def forward(self, h: Tensor) -> Tensor:
        R = orthonormal_rows(self.R).to(h.dtype)
        return h + (h @ self.W.to(h.dtype).mT + self.b.to(h.dtype) - h @ R.mT) @ R


class PromptIntervention(Transform):
    """Interventions at the first f and last l tokens of each row's prompt."""

    each_token = False

    def __init__(self, d_model: int, config: ReFTConfig, stack: str) -> None:
        super().__init__()
        self.first, self.last, self.stack = config.first, config.last, stack
        self.at_first = Intervention(d_model, config.rank)
        self.at_last = None if config.share else Intervention(d_model, config.rank)

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        prompt = rows.prompt_mask.get(self.stack)
        if prompt is None:
            if self.stack == "decoder":
                return y  # tokens that are being written are not the prompt's
            prompt = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        prompt = prompt.to(y.device)
        # (rows, tokens)
        position = prompt.long().cumsum(-1)  # 1, 2, ... within the prompt
        first = prompt & (position <= self.first)
        # a short prompt's tokens count once, as first ones
        last = prompt & (position > position[:, -1:] - self.last) & ~first
        if self.at_last is None:
            first = first | last
        else:
            # Computed everywhere and chosen by mask: prompts of a batch end at different places, and gathering would
            # cost more than r columns.
            y = torch.where(last[..., None], self.at_last(y), y)
        return torch.where(first[..., None], self.at_first(y), y)


def orthonormal_rows(R: Tensor) -> Tensor:
    """The rows of R (..., r, d) made orthonormal: L⁻¹ R with R Rᵀ = L Lᵀ, which is Gram and Schmidt's."""
    # A factorization in half precision does not exist, and near-parallel rows would lose it.
    R = R.float()
    # `cholesky` reads on the host whether it succeeded, for which each pass would wait; here rows that depend on each other
    # give NaN, which ends a training as any other does.
    L, failed = torch.linalg.cholesky_ex(R @ R.mT)
    L = torch.where((failed == 0)[..., None, None], L, torch.nan)
    result: Tensor = torch.linalg.solve_triangular(L, R, upper=False)
    return result


class ReFT(Method[ReFTConfig]):
    """Φ(h) = h + Rᵀ (W h + b − R h) at the first f and last l tokens of the prompt, in every chosen layer.

    Trainable: 2 r d + r per intervention. W starts as R and b as zero, so training starts at the backbone (up to
    rounding). Encoders and vision transformers: the whole input is the prompt. Encoder-decoder: the encoder's input
    is, and the decoder is left alone.

    Source: Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", equation 2 and section 3.3.
    Deviations: W starts as R (a random W in the authors' code); R is kept orthonormal by its Cholesky factor.
    """

    name = "reft"
    aliases = ("loreft",)
    branch = "addition"
    Config = ReFTConfig
    kinds = ("layer", "sublayer")
    capabilities = Capabilities()
    tiny: ClassVar[Mapping[str, Any]] = {"rank": 2, "first": 2, "last": 1}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "rank": Choice(2, 4, 8)}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        if self.config.first + self.config.last == 0:
            raise UserError("reft: first and last are both 0, so no position is changed.")
        if anatomy.kind != "encoder_decoder":
            return super().sites(anatomy)
        chosen = tuple(site for site in super().sites(anatomy) if site.stack == "encoder")
        if not chosen:
            raise UserError("reft acts on the prompt, which this backbone reads in its encoder; select encoder layers.")
        return chosen

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> PromptIntervention:
        return PromptIntervention(site.out_features, self.config, site.stack)

    def count(self, site: Site) -> int:
        interventions = 1 if self.config.share else 2
        return interventions * (2 * self.config.rank * site.out_features + self.config.rank)
