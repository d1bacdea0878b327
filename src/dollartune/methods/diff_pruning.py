"""DiffPruning: a difference to each weight that learns to be sparse, through gates that learn to close.

ΔW = z ⊙ w        z: hard-concrete gates in [0, 1], many of them exactly 0       loss + λ · expected share of open gates
gates learn ──> the `keep` largest |z w| are chosen ──> those alone train on ──> stored as (index, value)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.methods.base import HIGHEST_RATE, Capabilities, Method, ParameterGroup, SiteMethodConfig
from dollartune.methods.edits import Delta, Rows, zeros
from dollartune.methods.hard_concrete import opened, probability_open
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Site


class DiffPruningConfig(SiteMethodConfig):
    """A sparse difference to each chosen weight."""

    lr: float = 1e-4
    """Peak learning rate of the differences."""
    gate_lr: float = Field(0.1, gt=0.0, le=HIGHEST_RATE)
    """Peak learning rate of the gates."""
    where: str = "all_linear"
    """Linears whose weights get a difference."""
    keep: float = Field(0.005, gt=0.0, le=1.0)
    """Share of the weights that may differ in the end."""
    sparsity: float = Field(1.0, ge=0.0)
    """Factor λ of the expected share of open gates in the loss."""
    group: Literal["none", "row", "matrix"] = "matrix"
    """A second gate that closes a whole row or matrix at once (structured DiffPruning)."""
    gate_start: float = 5.0
    """Start of the gates' logits; 5 means open."""
    final: float = Field(0.3, ge=0.0, le=1.0)
    """Share of the steps, at the end, in which the choice stands and only chosen differences train."""


class SparseDifference(Delta):
    """x (z ⊙ w)ᵀ; in turn with gates, with a fixed mask, and stored as indices and values."""

    mask: Tensor
    """(out, in) bool, once the choice is made."""
    indices: Tensor
    """(chosen,) int32 places in the flat matrix, once compact."""

    def __init__(self, site: Site, group: str, start: float) -> None:
        super().__init__()
        self.shape = site.out_features, site.in_features
        self.w = zeros(*self.shape)
        self.gates = nn.Parameter(torch.full(self.shape, start))
        groups = {"row": (site.out_features, 1), "matrix": (1, 1)}
        self.group_gates = nn.Parameter(torch.full(groups[group], start)) if group in groups else None

    @property
    def stage(self) -> Literal["gated", "fixed", "compact"]:
        """Where in its life the difference is."""
        return "compact" if "values" in self._parameters else "fixed" if "mask" in self._buffers else "gated"

    def change(self, rows: Rows) -> Tensor:
        """ΔW (out, in)."""
        if self.stage == "compact":
            empty = self.values.new_zeros(math.prod(self.shape))
            # not in place: autograd needs the indices
            return empty.index_copy(0, self.indices.long(), self.values).view(self.shape)
        if self.stage == "fixed":
            return self.w * self.mask
        z = self._gates(self.gates, rows, 1)
        return self.w * z if self.group_gates is None else self.w * z * self._gates(self.group_gates, rows, 2)

    def _gates(self, logits: Tensor, rows: Rows, part: int) -> Tensor:
        """Sampled in training, from a seed so that the backward pass can draw them again, else their mode."""
        # Far above the number of sites: seeds that follow one another give no site the gates of another one.
        return opened(logits, (rows.seed * 1_000_003 + self.key * 3 + part) % 2**63 if rows.training else None)

    def expected_open(self) -> Tensor:
        """(out, in) probability that a gate is not zero."""
        open_ = probability_open(self.gates)
        return open_ if self.group_gates is None else open_ * probability_open(self.group_gates)

    @torch.no_grad()
    def fix(self, threshold: Tensor) -> None:
        """From now on only differences above the threshold exist."""
        # Without noise: what would be there at inference is what is ranked.
        change = self.change(Rows())
        self.register_buffer("mask", change.abs() > threshold)
        self.w.copy_(change * self.mask)

    @torch.no_grad()
    def compact(self) -> None:
        """Stores what is left as indices and values."""
        chosen = self.mask.flatten().nonzero()[:, 0]
        # int32: half the bytes of torch's own, enough for 2^31 weights
        self._become_compact(chosen.to(torch.int32), self.w.flatten()[chosen])

    def _become_compact(self, indices: Tensor, values: Tensor) -> None:
        for name in ("w", "gates", "group_gates"):
            self._parameters.pop(name, None)
        self._buffers.pop("mask", None)
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(values)

    def fit(self, tensors: dict[str, Tensor]) -> None:
        if "values" in tensors:
            empty = torch.zeros(len(tensors["values"]), device=next(self.parameters()).device)
            self._become_compact(empty.to(torch.int32), empty)
        elif "mask" in tensors:
            self.register_buffer("mask", torch.ones_like(self.w, dtype=torch.bool))
        else:
            # a state from before the choice, loaded after it: its gates count again
            self._buffers.pop("mask", None)

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        return x @ self.change(rows).to(x.dtype).mT

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.change(Rows()), bias


class DiffPruning(Method[DiffPruningConfig]):
    """W = W0 + z ⊙ w with an L0 penalty on the gates z.

    w (out, in) starts at zero, so training starts at the backbone. A gate is clamp(σ(α + logit u)(ζ − γ) + γ, 0, 1), u
    uniform; the loss gets λ · mean P(z > 0). When the final part of training begins, the `keep` share of all weights
    with the largest |z w| is chosen over all sites, gates go away, and those weights train on. `finish` stores indices
    and values. Trainable: 2 · in · out per linear (plus group gates) in training; `keep` of in · out after it.
    Mergeable.

    Source: Guo et al. 2020, "Parameter-Efficient Transfer Learning with Diff Pruning", sections 3.1 to 3.3; γ, ζ and
    the start of α as in the authors' code. λ weighs a mean, not the paper's sum (1.25e-7 · 340 M there is 42 here, for
    unscaled summed losses); embeddings, biases and norms stay as they are.
    """

    name = "diff_pruning"
    aliases = ("diffpruning", "diff_prune")
    branch = "specification"
    Config = DiffPruningConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable=True, stackable=False)
    tiny: ClassVar[Mapping[str, Any]] = {"keep": 0.2, "lr": 0.02}
    search: ClassVar[Mapping[str, Any]] = {
        "lr": LogUniform(1e-5, 1e-2), "sparsity": LogUniform(1e-2, 1e2), "keep": Choice(0.001, 0.005, 0.02)
    }  # fmt: skip

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> SparseDifference:
        return SparseDifference(site, self.config.group, self.config.gate_start)

    def count(self, site: Site) -> int:
        groups = {"row": site.out_features, "matrix": 1, "none": 0}
        return 2 * site.in_features * site.out_features + groups[self.config.group]

    def parameter_groups(self, part: nn.Module) -> list[ParameterGroup]:
        gates = [p for name, p in part.named_parameters() if name.endswith("gates")]
        rest = [p for name, p in part.named_parameters() if not name.endswith("gates")]
        slow: ParameterGroup = {"params": rest, "lr": self.config.lr, "weight_decay": self.config.weight_decay}
        # Decay would pull logits to 0, where a gate is half open.
        return [slow, {"params": gates, "lr": self.config.gate_lr, "weight_decay": 0.0}]

    def penalty(self, part: nn.Module, progress: float) -> Tensor | None:
        edits = _edits(part)
        if edits[0].stage != "gated":
            return None
        total = sum(edit.w.numel() for edit in edits)
        # A mean over weights: the paper's sum would need another λ for every size of backbone.
        return self.config.sparsity * torch.stack([edit.expected_open().sum() for edit in edits]).sum() / total

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        if step + 1 >= total_steps - int(self.config.final * total_steps):
            self._fix(_edits(part))

    def _fix(self, edits: Sequence[SparseDifference]) -> None:
        """Chooses the largest differences over all sites, once."""
        if edits[0].stage == "gated":
            sizes = torch.cat([edit.change(Rows()).detach().abs().flatten() for edit in edits])
            dropped = len(sizes) - round(self.config.keep * len(sizes))
            # Over all sites at once: `keep` is a share of all weights, and sites that matter may have more.
            threshold = sizes.kthvalue(dropped).values if dropped else sizes.new_zeros(())
            for edit in edits:
                edit.fix(threshold)

    def settled(self, part: nn.Module) -> bool:
        return _edits(part)[0].stage != "gated"

    def finish(self, part: nn.Module) -> None:
        edits = _edits(part)
        self._fix(edits)
        for edit in edits:
            if edit.stage == "fixed":
                edit.compact()

    def report(self, part: nn.Module) -> dict[str, float]:
        edits = _edits(part)
        changed = sum(int(edit.change(Rows()).count_nonzero()) for edit in edits)
        share = changed / sum(math.prod(edit.shape) for edit in edits)
        return {"sparsity": 1 - share, "weights_changed": float(changed)}


def _edits(part: nn.Module) -> list[SparseDifference]:
    return [edit for edit in part.modules() if isinstance(edit, SparseDifference)]
