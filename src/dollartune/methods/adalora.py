"""AdaLoRA: a low-rank update as triplets (p, λ, q); during training the least important triplets of all sites are
dropped.

    Δ = s · P diag(λ) Q      P (out, r)  λ (r, 1)  Q (r, in)        rank budget
                                                                  init ┐‾‾‾\\
    every few steps: score triplets, keep the `budget` best             warmup \\_ cubic ____ final
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.exchange import (
    ImportedPart,
    PeftCheckpoint,
    PeftPart,
    low_rank,
    selections,
    stored_transposed,
)
from dollartune.methods.lora import above_all_matrices
from dollartune.methods.rank_allocation import SingularTriplets, allocate
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class AdaLoRAConfig(SiteMethodConfig):
    """Low-rank updates that share a budget of rank."""

    lr: float = 1e-3
    where: str = "all_linear"
    """Linear layers among which the rank is shared out."""
    # 12 and 8, and the 0.85 and 0.5 below, are peft's defaults.
    rank: int = Field(12, ge=1)
    """Rank of every update at the start."""
    target_rank: int = Field(8, ge=0)
    """Mean rank at the end."""
    alpha: float = Field(32.0, gt=0.0)
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
    small_lr = 0.005
    tiny: ClassVar[Mapping[str, Any]] = {"rank": 4, "target_rank": 2, "dropout": 0.2}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 1e-2), "target_rank": Choice(2, 4, 8)}

    def mistake(self, anatomy: Anatomy) -> str | None:
        return above_all_matrices([(site, self.config.rank) for site in self.sites(anatomy)])

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
        # Cubic: most triplets go early, when their training has cost little, and the last ones slowly.
        return int((start - target) * (1 - (step - begin) / (end - begin)) ** 3 + target)

    def penalty(self, part: nn.Module, progress: float) -> Tensor | None:
        terms = []
        for edit in _edits(part):
            # (r, r) both. Only orthogonal vectors make λ comparable to singular values.
            for gram in (edit.Q @ edit.Q.mT, edit.P.mT @ edit.P):
                terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.config.orthogonality * torch.stack(terms).mean() if self.config.orthogonality else None

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        edits = _edits(part)
        begin, end = self.phases(total_steps)
        if step < end:
            for edit in edits:
                # At every step, also where nothing is allocated: the averages would skip batches else.
                edit.observe(self.config.beta_sensitivity, self.config.beta_uncertainty)
        if step < end and (step <= begin or step % self.config.every):
            return
        if step <= end:
            allocate(edits, self.budget(step, total_steps, len(edits)))
        with torch.no_grad():
            for edit in edits:
                # After every step and not only after an allocation: the optimizer's momentum moves dead λ away from
                # zero again.
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
        tensors: dict[str, Tensor] = {}
        pattern: dict[str, list[bool]] = {}
        for site, edit in items:
            tensors[f"{site.exit}.lora_A"], tensors[f"{site.exit}.lora_B"] = edit.Q.detach(), edit.P.detach()
            tensors[f"{site.exit}.lora_E"] = edit.values.detach()
            if edit.pruned:
                pattern[f"{site.exit}.lora_E"] = edit.kept.tolist()
        settings = {
            "init_r": self.config.rank,
            "target_r": self.config.target_rank,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "rank_pattern": pattern or None,
            # Training is over. peft asks for a schedule that fits into its steps, and this one says that nothing is
            # left to prune.
            "total_step": 1,
            "tinit": 0,
            "tfinal": 0,
            "deltaT": self.config.every,
            "lora_dropout": 0.0,
            "beta1": self.config.beta_sensitivity,
            "beta2": self.config.beta_uncertainty,
            "orth_reg_weight": self.config.orthogonality,
            "fan_in_fan_out": stored_transposed(items),
            "bias": "none",
        }
        return PeftPart("ADALORA", settings, tensors, tuple(site.exit for site, _ in items))

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """Parts at the starting rank; triplets that were dropped come back random with λ = 0, so that training can go on and
        share out the rank again.

        Raises:
            UserError: tensors other than a triplet's, or a pattern that does not fit them.
        """
        config = checkpoint.config
        # peft's defaults, for what a config leaves out
        rank, alpha = int(config.get("init_r", 12)), float(config.get("lora_alpha", 8))
        pattern = config.get("rank_pattern") or {}
        # seeded, so that a checkpoint read twice is one adapter
        generator = torch.Generator().manual_seed(0)
        tensors: dict[Site, dict[str, Tensor]] = {}
        for path, parts in checkpoint.modules.items():
            if parts.keys() != {"lora_A", "lora_B", "lora_E"}:
                raise UserError(
                    f"the peft adapter has {sorted(parts)} at {path!r}; expected lora_A, lora_B and lora_E."
                )
            q, p, values = parts["lora_A"], parts["lora_B"], parts["lora_E"]
            kept = torch.tensor(pattern.get(f"{path}.lora_E", [True] * rank), dtype=torch.bool)
            if len(kept) != rank or q.shape[0] not in (rank, int(kept.sum())):
                raise UserError(
                    f"the peft adapter keeps {int(kept.sum())} of {rank} triplets at {path!r} and has {q.shape[0]}."
                )
            if q.shape[0] != rank or not kept.all():
                rows = slice(None) if q.shape[0] != rank else kept
                full_q, full_p = (
                    # As a new triplet begins.
                    torch.randn(rank, q.shape[1], generator=generator) * 0.02,
                    torch.randn(p.shape[0], rank, generator=generator) * 0.02,
                )
                full_values = torch.zeros(rank, 1)
                full_q[kept], full_values[kept], full_p[:, kept] = q[rows], values[rows], p[:, rows]
                q, p, values = full_q, full_p, full_values
            for site, rows in checkpoint.pieces(path):
                tensors[site] = {"Q": q, "P": p[rows], "values": values}
        settings = {
            "rank": rank,
            "target_rank": min(rank, int(config.get("target_r", 8))),
            "alpha": alpha,
            "dropout": float(config.get("lora_dropout", 0.0)),
        }
        return [
            ImportedPart("adalora", {**settings, **selection}, {site.name: tensors[site] for site in sites})
            for selection, sites in selections(list(tensors))
        ]

    def report(self, part: nn.Module) -> dict[str, float]:
        edits = _edits(part)
        return {"mean_rank": sum(int(edit.kept.sum()) for edit in edits) / len(edits)}


def _edits(part: nn.Module) -> list[SingularTriplets]:
    return [edit for edit in part.modules() if isinstance(edit, SingularTriplets)]
