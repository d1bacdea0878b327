"""AdaLoRA: a low-rank update as triplets (p, λ, q); during training the least important triplets of all sites are
dropped.

    Δ = s · P diag(λ) Q      P (out, r)  λ (r, 1)  Q (r, in)        rank budget
                                                                  init ┐‾‾‾\\
    every few steps: score triplets, keep the `budget` best             warmup \\_ cubic ____ final
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site
from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart, low_rank
from dollartune.methods.exchange.adalora import read_adalora, write_adalora
from dollartune.methods.rank_allocation import SingularTriplets, allocate
from dollartune.methods.space import Choice, LogUniform


class AdaLoRAConfig(SiteMethodConfig):
    """Low-rank updates that share a budget of rank."""

    lr: float = 1e-3
    where: str = "all_linear"
    """Linear layers among which the rank is shared out."""
    rank: int = Field(12, ge=1)
    """Rank of every update at the start."""
    target_rank: int = Field(8, ge=0)
    """Mean rank at the end."""
    alpha: float = 32.0
    """Numerator of the scale alpha / rank (the rank at the start, also after pruning)."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the update's input, in training."""
    warmup: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps before anything is dropped."""
    final: float = Field(0.3, ge=0.0, le=1.0)
    """Share of the steps, at the end, that train with the final ranks."""
    every: int = Field(1, ge=1)
    """Steps between two allocations."""
    beta_sensitivity: float = Field(0.85, gt=0.0, lt=1.0)
    """Smoothing of the sensitivity."""
    beta_uncertainty: float = Field(0.85, gt=0.0, lt=1.0)
    """Smoothing of its uncertainty."""
    orthogonality: float = Field(0.5, ge=0.0)
    """Weight of the penalty that keeps P and Q orthogonal."""


class AdaLoRA(Method[AdaLoRAConfig]):
    """Adaptive low-rank adaptation: y = W x + s · P diag(λ) Q x, with one budget of rank for all sites.

    P (out, r), Q (r, in) start small and random, λ (r) at zero, so training starts at the backbone. After each step
    the importance of every triplet is updated; from the end of the warm-up the λ of the least important ones are set
    to zero, along a cubic schedule from `rank` to `target_rank` on average, and for the last part of training the
    choice stands. `finish` cuts the dead triplets out of the stored tensors. Trainable before that: r (in + out + 1)
    per linear. Loss term: orthogonality · mean over P and Q of ‖PᵀP − I‖. Mergeable.

    Source: Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", equations 3, 7 and 9
    to 12. As in the peft library, importance is read after the optimizer's step, from that step's gradient, and the
    scale keeps the rank of the start; unlike there, warm-up and final phase are shares of the steps, and pruned
    tensors really shrink.
    """

    name = "adalora"
    aliases = ("ada_lora", "adaptive_lora")
    branch = "reparameterization"
    Config = AdaLoRAConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, peft_type="ADALORA")
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "target_rank": Choice(2, 4, 8)}

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        if self.config.target_rank > self.config.rank:
            raise UserError(
                f"adalora: target_rank {self.config.target_rank} is above the starting rank {self.config.rank}."
            )
        if self.config.warmup + self.config.final > 1:
            raise UserError(
                f"adalora: warmup {self.config.warmup} and final {self.config.final} are shares of the steps; "
                "they sum to more than 1."
            )

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> SingularTriplets:
        return SingularTriplets(
            site.in_features, site.out_features, self.config.rank, self.config.alpha, self.config.dropout
        )

    def count(self, site: Site) -> int:
        return self.config.rank * (site.in_features + site.out_features + 1)

    def phases(self, total_steps: int) -> tuple[int, int]:
        """(last step of the warm-up, first step at which the choice is final)."""
        return int(self.config.warmup * total_steps), total_steps - int(self.config.final * total_steps)

    def budget(self, step: int, total_steps: int, sites: int) -> int:
        """Number of triplets, over all sites, that may live at a step (equation 12)."""
        begin, end = self.phases(total_steps)
        start, target = self.config.rank * sites, self.config.target_rank * sites
        if step >= end:
            return target
        if step <= begin:
            return start
        return int((start - target) * (1 - (step - begin) / (end - begin)) ** 3 + target)

    def penalty(self, part: nn.Module, progress: float) -> Tensor | None:
        terms = []
        for edit in _edits(part):
            for gram in (edit.Q @ edit.Q.mT, edit.P.mT @ edit.P):
                terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.config.orthogonality * torch.stack(terms).mean() if self.config.orthogonality else None

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        edits = _edits(part)
        begin, end = self.phases(total_steps)
        if step < end:
            for edit in edits:
                edit.observe(self.config.beta_sensitivity, self.config.beta_uncertainty)
        if step < end and (step <= begin or step % self.config.every):
            return
        if step <= end:
            allocate(edits, self.budget(step, total_steps, len(edits)))
        with torch.no_grad():
            for edit in edits:
                edit.values.masked_fill_(~edit.kept[:, None], 0.0)

    def settled(self, part: nn.Module) -> bool:
        edits = _edits(part)
        return sum(int(edit.kept.sum()) for edit in edits) <= self.config.target_rank * len(edits)

    def finish(self, part: nn.Module) -> None:
        for edit in _edits(part):
            edit.prune()

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """ADALORA, pruned as here; on a fused linear a LoRA, since peft shares out the rank of q, k and v together."""
        if any(site.part is not None for site, _ in items):
            return low_rank([(site, edit.factors()) for site, edit in items])
        return write_adalora(items, self.config)

    @classmethod
    def from_peft(cls, found: PeftCheckpoint) -> list[ImportedPart] | None:
        """Triplets that were dropped come back with λ = 0, so that training can go on and share out the rank again."""
        return read_adalora(found)

    def report(self, part: nn.Module) -> dict[str, float]:
        edits = _edits(part)
        return {"mean_rank": sum(int(edit.kept.sum()) for edit in edits) / len(edits)}


def _edits(part: nn.Module) -> list[SingularTriplets]:
    return [edit for edit in part.modules() if isinstance(edit, SingularTriplets)]
