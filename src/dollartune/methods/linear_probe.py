"""Linear probe: logistic regression on features of the frozen backbone, solved.

tokens ──> frozen backbone ──> states (tokens, d) ──> pooled h (width,) ──> (h − μ) / σ ──> W, b ──> scores (classes,)
           once per row                                                      standardized    solved, C by cross-validation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dollartune.backbones.anatomy import Anatomy, Site, weight_shape
from dollartune.errors import UserError
from dollartune.methods.edits import Readout
from dollartune.methods.features import LabelledFeatures, read_by_head, state_width
from dollartune.methods.logistic import LogisticProblem, choose_C, operations
from dollartune.methods.solved import SolvedMethod, SolvedSettings

if TYPE_CHECKING:
    from dollartune.methods.base import Capabilities

ONE_THREAD_NUMBERS = 20_000_000
"""Features of fewer numbers (50,000 rows of width 384) are solved in a few seconds by one core."""


class LinearProbeConfig(SolvedSettings):
    """A linear classifier on frozen features. It has no learning rate: nothing is stepped."""

    pooling: str = "auto"
    """How a row's last states become one vector: `mean` over its tokens, `last`, `first`, or several as `last+mean`. `auto`
    is the mean in encoders and encoder-decoders (whose encoder alone is run), `last+mean` in decoders, `first+mean` in
    vision transformers. With `@middle` behind it a part is of the states after half of the layers; `deep` is `auto` and its
    parts there."""
    C: float | None = Field(None, gt=0.0)
    """Inverse strength of the regularization of W, as in scikit-learn; by default chosen by cross-validation on the training
    rows."""
    folds: int = Field(5, ge=2)
    """Folds of the cross-validation, stratified by class."""
    intercept: bool = True
    """Whether there is a bias b. Heads of decoders have none: only without one can a probe be merged into them."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs each row by rows / (classes · rows of its class), for classes that are rare."""
    rows_share: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the training rows that it is solved on, spread over all of them: features of more would take too long."""


class Probe(Readout):
    """W ((h − μ) / σ) + b."""

    def __init__(self, pooling: tuple[str, ...], d_model: int, classes: int) -> None:
        super().__init__()
        self.pooling = pooling
        width = d_model * len(pooling)
        self.mean = nn.Buffer(torch.zeros(width))  # μ
        self.scale = nn.Buffer(torch.ones(width))  # σ
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def scores(self, features: Tensor, tokens: Sequence[Sequence[int]] | None = None) -> Tensor:
        return (features - self.mean) / self.scale @ self.weight.mT + self.bias

    def head(self) -> tuple[Tensor, Tensor]:
        weight = self.weight.detach() / self.scale  # (classes, width): the standardization moved into W and b
        return weight, self.bias.detach() - weight @ self.mean

    def linear(self) -> dict[str, Tensor]:
        weight, bias = self.head()
        return {"weight": weight, "bias": bias}


class LinearProbe(SolvedMethod[LinearProbeConfig]):
    """scores = W (h − μ) / σ + b, where W and b minimize Σ −log softmax(scores)[label] + ‖W‖² / (2 C).

    h (width,) is pooled from the last states of the frozen backbone, μ and σ are its mean and standard deviation over the
    training rows. W (classes, width) starts at zero and is solved by L-BFGS to the optimum; C is chosen on a path from strong
    to weak regularization by stratified cross-validation on the log loss. The features of a row are computed once in a
    study. Trainable: classes · (width + 1).

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes"; the regression as in
    scikit-learn. That regularization decides what a probe is worth as a start: Kumar et al. 2022.
    """

    name = "linear_probe"
    aliases = ("probe", "logistic_regression")
    Config = LinearProbeConfig
    capabilities: Capabilities = SolvedMethod.capabilities  # type: ignore[misc]
    reference = "probe"

    def __init__(self, config: LinearProbeConfig | None = None, /, **settings: Any) -> None:
        super().__init__(config, **settings)
        # a head of transformers reads one state: the last token's in decoders, the first place's in image classifiers
        self.capabilities = replace(type(self).capabilities, mergeable=self.config.pooling in ("last", "first"))
        self.read_by_head: tuple[str, ...] = ()

    @classmethod
    def configure(cls, settings: Mapping[str, Any]) -> LinearProbeConfig:
        if stepped := {"lr", "weight_decay", "fresh"} & settings.keys():
            raise UserError(
                f"method {cls.name!r} is solved and has no {sorted(stepped)[0]!r}: until version 0.1 the name meant `head`, "
                "which is trained by steps.",
                hint="Write head for that, or leave the setting out.",
            )
        return super().configure(settings)

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        self.read_by_head = read_by_head(anatomy)
        probe = Probe(self.pools(anatomy), state_width(sites[0], anatomy), sites[0].out_features)
        probe.rows_share = self.config.rows_share
        return probe

    def describe(self) -> dict[str, object]:
        described = super().describe()
        # Left out at its default: trials of before it existed keep their identifiers, and their records are found again.
        if self.config.rows_share == 1.0:
            del described["rows_share"]
        return described

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Readout:
        probe = super().edit(site, shared, module)
        probe.unmergeable = self._unmergeable(probe.pooling, module)
        return probe

    def _unmergeable(self, pooling: tuple[str, ...], module: nn.Module) -> str | None:
        """Why W and b cannot be those of the head `module`; None where they can."""
        if weight_shape(module) is None:
            return "the backbone's head has a hidden layer of its own, which the probe does not read"
        if pooling != self.read_by_head:
            reads = "+".join(self.read_by_head) or "a pooled output with weights of its own"
            return f"the probe reads {'+'.join(pooling)}, the backbone's head {reads}"
        if self.config.intercept and getattr(module, "bias", None) is None:
            return "the backbone's head has no bias; solve with linear_probe(intercept=False)"
        return None

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        width = state_width(sites[0], anatomy) * len(self.pools(anatomy))
        return sites[0].out_features * (width + 1)

    @torch.no_grad()
    def solve(self, part: nn.Module, rows: LabelledFeatures) -> None:
        probe = next(module for module in part.modules() if isinstance(module, Probe))
        self.solution = solve_probe(probe, rows, self.config, self.config.intercept)

    @torch.no_grad()
    def linear_head(self, rows: LabelledFeatures, intercept: bool) -> tuple[Tensor, Tensor]:
        probe = Probe(("given",), rows.features.shape[1], rows.classes)
        self.solution = solve_probe(probe, rows, self.config, intercept)
        return probe.head()

    def solve_operations(self, rows: int, width: int, classes: int) -> float:
        return operations(rows, width, classes, min(self.config.folds, rows) if self.config.C is None else 0)


def solve_probe(
    probe: Probe, rows: LabelledFeatures, config: LinearProbeConfig, intercept: bool = True
) -> dict[str, float]:
    """Fills μ, σ, W and b.

    Args:
        intercept: False for heads without a bias: then features are scaled but not centred, as a shift would need one.

    Returns:
        C, and where it was chosen the held-out log loss and accuracy.
    """
    # NumPy's threads wait for each other by turning round; on a busy machine they take fifty times as long as one alone
    with threadpool_limits(1 if rows.features.numel() < ONE_THREAD_NUMBERS else None):
        return _solve_probe(probe, rows, config, intercept)


def _solve_probe(probe: Probe, rows: LabelledFeatures, config: LinearProbeConfig, intercept: bool) -> dict[str, float]:
    features = rows.features.double().numpy()
    labels = rows.labels.numpy()
    mean = features.mean(0) if intercept else np.zeros(features.shape[1])
    scale = features.std(0)
    scale = np.where(scale > 1e-6 * max(1e-12, float(scale.max(initial=0.0))), scale, 1.0)  # a constant says nothing
    standard = (features - mean) / scale
    counts = np.bincount(labels, minlength=rows.classes)
    weights = np.ones(len(labels))
    if config.class_weight == "balanced":
        weights = (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels]
    held_out: dict[str, float] = {}
    C = config.C
    if C is None:
        chosen = choose_C(standard, labels, rows.classes, weights, config.folds, rows.seed, intercept=intercept)
        C = chosen.C
        if chosen.losses:
            held_out = {"held_out_log_loss": chosen.losses[C], "held_out_accuracy": chosen.accuracy}
    (solution,) = LogisticProblem(standard, labels, rows.classes, weights[None], intercept).solve(C)
    for tensor, value in (
        (probe.mean, mean), (probe.scale, scale), (probe.weight, solution.weight), (probe.bias, solution.bias)
    ):  # fmt: skip
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return {"C": C, **held_out}
