"""k nearest neighbours: a row is what the training rows most like it are, by the features of the frozen backbone.

pooled h (width,) ──> (h − μ) / σ, to length 1 ──> cosine to every training row ──> the k nearest vote, the nearer the more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from dollartune.methods.edits import Readout
from dollartune.methods.features import state_width
from dollartune.methods.solved import SolvedMethod, SolvedSettings

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site
    from dollartune.methods.features import LabelledFeatures

CANDIDATES = (1, 3, 5, 10, 20, 50, 100)
"""k from which cross-validation chooses: neighbours differ by half to twofold, which is what a held-out loss can tell apart."""
TEMPERATURE = 0.07
"""A neighbour's vote is exp(cosine / TEMPERATURE), as in Wu et al. 2018: 0.07 nearer counts e times as much."""
CHUNK = 2048
"""Rows whose similarities are held at a time, so that memory grows with the training rows, not with their square."""


class KNNConfig(SolvedSettings):
    """Votes of the most similar training rows."""

    pooling: str = "auto"
    """How a row's last states become one vector: see `linear_probe`."""
    k: int | None = Field(None, ge=1)
    """Number of neighbours; by default chosen by leaving out each training row in turn."""


class Neighbours(Readout):
    """log of the votes' shares; every class has one vote of the least weight more, so that none is impossible."""

    rows: Tensor
    """(rows, width), standardized, of length 1."""
    labels: Tensor
    """(rows,) class of each."""

    def __init__(self, pooling: tuple[str, ...], d_model: int, classes: int) -> None:
        super().__init__()
        self.pooling, self.classes = pooling, classes
        width = d_model * len(pooling)
        self.mean = nn.Buffer(torch.zeros(width))  # μ
        self.scale = nn.Buffer(torch.ones(width))  # σ
        self.register_buffer("rows", torch.zeros(1, width))
        self.register_buffer("labels", torch.zeros(1, dtype=torch.long))
        self.k = nn.Buffer(torch.ones((), dtype=torch.long))

    def fit(self, tensors: dict[str, Tensor]) -> None:
        if "rows" in tensors:
            self.rows = torch.zeros_like(tensors["rows"], device=self.mean.device)
            self.labels = torch.zeros_like(tensors["labels"], device=self.mean.device)

    def unit(self, features: Tensor) -> Tensor:
        """Standardized, of length 1."""
        return functional.normalize((features - self.mean) / self.scale, dim=-1)

    def scores(self, features: Tensor, tokens: Sequence[Sequence[int]] | None = None) -> Tensor:
        # a plan passes tensors without contents, and k is one of them
        if features.device.type == "meta":
            return features.new_zeros(len(features), self.classes)
        similar = self.unit(features) @ self.rows.mT  # (queries, rows)
        # a k that was set may be more than the rows of a small scale
        return votes(similar, self.labels, self.classes, min(int(self.k), len(self.rows)))


def votes(similar: Tensor, labels: Tensor, classes: int, k: int) -> Tensor:
    """(queries, classes) log shares of the k nearest rows' votes; similar (queries, rows)."""
    nearest = similar.topk(k, dim=-1)
    weight = ((nearest.values - 1.0) / TEMPERATURE).exp()
    counted = torch.zeros(len(similar), classes, device=similar.device)
    counted.scatter_add_(1, labels[nearest.indices], weight)
    least = weight[:, -1:]  # the farthest neighbour's: add-one smoothing in the votes' own unit
    return ((counted + least) / (counted + least).sum(-1, keepdim=True)).log()


class KNN(SolvedMethod[KNNConfig]):
    """p(class) ∝ 1 + Σ over the k nearest training rows of that class of exp((cos − cos_k) / 0.07), cos_k of the farthest.

    Features are pooled, standardized and of length 1. k is chosen by leaving out each training row in turn, on the log loss.
    Trainable: nothing; the adapter holds the training rows' features, rows · (width + 1) numbers, which grows with the data.

    Source: Cover and Hart 1967; weights as in Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4; the one vote more per class is ours, so that a log loss is finite.
    """

    name = "knn"
    aliases = ("k_nearest_neighbours", "nearest_neighbours", "k_nn")
    Config = KNNConfig

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        return Neighbours(self.pools(anatomy), state_width(sites[0], anatomy), sites[0].out_features)

    @torch.no_grad()
    def solve(self, part: nn.Module, rows: LabelledFeatures) -> None:
        edit = next(module for module in part.modules() if isinstance(module, Neighbours))
        features, labels = rows.features.to(edit.mean.device), rows.labels.to(edit.mean.device)
        edit.mean.copy_(features.mean(0))
        scale = features.std(0, correction=0)
        # A feature that never changes has no unit; dividing rounding errors by 1e-9 would make noise the largest
        # feature.
        edit.scale.copy_(torch.where(scale > 1e-6 * scale.max().clamp_min(1e-12), scale, 1.0))
        edit.rows, edit.labels = edit.unit(features), labels
        if self.config.k is not None:
            self.solution = {"k": float(self.config.k)}
        else:
            losses = leave_one_out(edit.rows, labels, rows.classes)
            best = min(losses, key=lambda k: (losses[k], -k))  # ties to more neighbours, which is the smoother answer
            self.solution = {"k": float(best), "held_out_log_loss": losses[best]}
        edit.k.fill_(int(self.solution["k"]))

    def solve_operations(self, rows: int, width: int, classes: int) -> float:
        return 2.0 * rows * rows * width if self.config.k is None else 0.0


def leave_one_out(unit: Tensor, labels: Tensor, classes: int) -> dict[int, float]:
    """k -> mean −log p(label) of each row by all others; unit (rows, width) of length 1."""
    sums = {k: 0.0 for k in CANDIDATES if k < len(unit)} or {1: 0.0}
    if len(unit) < 2:
        return sums
    # In chunks: all similarities at once would be rows² numbers.
    for begin in range(0, len(unit), CHUNK):
        chosen = torch.arange(begin, min(begin + CHUNK, len(unit)))
        similar = unit[chosen] @ unit.mT
        similar[torch.arange(len(chosen)), chosen] = -torch.inf  # a row is no neighbour of itself
        for k in sums:
            shares = votes(similar, labels, classes, k)
            sums[k] -= float(shares[torch.arange(len(chosen)), labels[chosen]].sum())
    return {k: total / len(unit) for k, total in sums.items()}
