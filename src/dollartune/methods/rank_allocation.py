"""Triplets (p, λ, q) that remember how important they are, and the choice of those that live: the parts of AdaLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dollartune.methods.edits import Delta, Rows, dropout, zeros

if TYPE_CHECKING:
    from dollartune.methods.exchange import Factors


class SingularTriplets(Delta):
    """scale · dropout(x) (Q ⊙ λ)ᵀ Pᵀ, with what the allocation has to remember until training ends."""

    zero_padded = True
    bookkeeping = ("kept",)

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        # 0.02 as in the authors' code and peft's; λ at zero makes the start the backbone, whatever P and Q are.
        self.Q = nn.Parameter(torch.randn(rank, in_features) * 0.02)  # (r, in)
        self.values = zeros(rank, 1)  # λ (r, 1)
        self.P = nn.Parameter(torch.randn(out_features, rank) * 0.02)  # (out, r)
        self.kept = nn.Buffer(torch.ones(rank, dtype=torch.bool))  # which of the first r triplets are alive
        # peft's code adds 1e-5, where a rank of 0 would divide by nothing; an exchanged adapter must have the same
        # scale.
        self.scale = alpha / (rank + 1e-5)
        self.dropout = dropout
        for name, parameter in self.triplet().items():
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(parameter))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(parameter))

    def triplet(self) -> dict[str, nn.Parameter]:
        """The three tensors by name."""
        return {"Q": self.Q, "values": self.values, "P": self.P}

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        x = dropout(x, self.dropout, rows, self.key)
        return (x @ (self.Q * self.values).to(x.dtype).mT) @ (self.P.to(x.dtype).mT * self.scale)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.P @ (self.Q * self.values)), bias

    def factors(self) -> list[Factors]:
        """The update as one term scale · B A of a LoRA."""
        return [((self.Q * self.values).detach(), self.P.detach(), self.scale)]

    @torch.no_grad()
    def observe(self, beta_sensitivity: float, beta_uncertainty: float) -> None:
        """Smooths |w · gradient| and its deviation, element by element (equations 9 to 11)."""
        for name, parameter in self.triplet().items():
            if parameter.grad is None:
                raise RuntimeError("AdaLoRA reads gradients after the optimizer's step; they are gone already")
            # How much the loss would change if the element were zero, to first order.
            importance = (parameter * parameter.grad).abs()
            sensitivity, uncertainty = self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")
            sensitivity.mul_(beta_sensitivity).add_(importance, alpha=1 - beta_sensitivity)
            uncertainty.mul_(beta_uncertainty).add_((importance - sensitivity).abs(), alpha=1 - beta_uncertainty)

    def scores(self) -> Tensor:
        """(r,) importance of each triplet: λ's own plus the means over its p and its q (equation 7)."""
        # Sensitivity times its uncertainty: a value that is large but steady is trusted less than the paper's plain
        # sensitivity would.
        score = {
            name: self.get_buffer(f"sensitivity_{name}") * self.get_buffer(f"uncertainty_{name}")
            for name in self.triplet()
        }
        return score["values"][:, 0] + (score["Q"].mean(dim=1) + score["P"].mean(dim=0))

    @torch.no_grad()
    def prune(self) -> None:
        """Really drops dead triplets, and what only their selection needed."""
        if not self.pruned:
            self._shrink(self.Q[self.kept], self.values[self.kept], self.P[:, self.kept])

    @property
    def pruned(self) -> bool:
        """Whether training has ended and dead triplets are gone."""
        return "sensitivity_Q" not in self._buffers

    def _shrink(self, q: Tensor, values: Tensor, p: Tensor) -> None:
        # cloned: a slice would keep the whole tensor in memory
        self.Q, self.values, self.P = nn.Parameter(q.clone()), nn.Parameter(values.clone()), nn.Parameter(p.clone())
        for name in ("Q", "values", "P"):
            for kind in ("sensitivity", "uncertainty"):
                self._buffers.pop(f"{kind}_{name}", None)

    def fit(self, tensors: dict[str, Tensor]) -> None:
        if "sensitivity_Q" not in tensors and not self.pruned:
            rank = tensors["values"].shape[0]
            self._shrink(self.Q.detach()[:rank], self.values.detach()[:rank], self.P.detach()[:, :rank])


def allocate(edits: Sequence[SingularTriplets], budget: int) -> None:
    """Keeps the `budget` most important triplets over all sites."""
    scores = torch.cat([edit.scores() for edit in edits])
    dropped = len(scores) - budget
    # Scores are products of magnitudes, so -1 is below all of them.
    threshold = torch.kthvalue(scores, dropped).values if dropped > 0 else scores.new_tensor(-1.0)
    for edit in edits:
        edit.kept.copy_(edit.scores() > threshold)  # in place: the optimizer and the stored adapter hold this buffer
