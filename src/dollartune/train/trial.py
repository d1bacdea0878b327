"""One trial in training: its adapter, its own optimizer, schedule, data order, early stopping and history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.fsdp import whole
from dollartune.methods.edits import Rows
from dollartune.train.batching import epoch_order
from dollartune.train.encoding import Encoded
from dollartune.train.optimizers import build_optimizer
from dollartune.train.settings import TrainingSettings


@dataclass(frozen=True)
class Validation:
    """One measurement during training."""

    epoch: float
    step: int
    seconds: float
    """Tuning seconds since the trial began, validation included; shared passes are divided among their trials."""
    train_loss: float
    validation_loss: float


@dataclass
class Progress:
    """What a checkpoint stores beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: float = 0.0
    best_step: int = 0
    best_seconds: float = 0.0
    without_gain: int = 0
    settled: bool = False
    """Whether its methods' schedules have come to what they promise, so that a validation may be the best."""
    examples: int = 0
    tokens: int = 0
    trunk_layers: dict[str, int] = field(default_factory=dict)
    """Stack -> leading layers below the lowest trained one whose outputs were computed once; empty where none were."""
    trunk_tokens: int = 0
    """Of `tokens`, those that began above these layers."""
    trunk_tokens_computed: int = 0
    """This trial's share of the tokens for which these layers were run."""
    compile_seconds: float = 0.0
    """Of `seconds`, this trial's share of what compiling layers took."""
    stopped: str = ""
    """Why it ended before its last step: `patience`, `budget`, `pruned`, `failed`; empty while running or at the last step."""
    error: str = ""
    """What broke, where it failed."""
    history: list[Validation] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        return cls(**{**data, "history": [Validation(**row) for row in data["history"]]})


class TrialState:
    """A trial's moving parts. It never touches the global random generator, so trials do not disturb each other.

    Args:
        fraction: share of the study's training that this trial gets, with a schedule of its own that ends there.
        steps: optimizer steps that it gets, in place of a share.
    """

    def __init__(
        self,
        name: str,
        adapter: Adapter,
        train: Sequence[Encoded],
        settings: TrainingSettings,
        seed: int,
        fraction: float = 1.0,
        steps: int | None = None,
    ) -> None:
        self.name, self.adapter, self.train, self.settings, self.seed = name, adapter, train, settings, seed
        self.parts: list[Any] = list(adapter.parts)
        self.progress = Progress()
        self.batches_per_epoch = math.ceil(len(train) / settings.batch_size)
        whole = self.batches_per_epoch * settings.epochs_for(len(train))
        self.total_steps = max(1, round(fraction * whole) if steps is None else steps)
        groups = []
        for part in self.parts:
            groups += [g for g in part.method.parameter_groups(part) if g["params"]]
        self.optimizer = build_optimizer(groups, settings.optimizer) if groups else None
        self.peak_rates = [group["lr"] for group in groups]
        self.best: dict[str, Tensor] | None = None
        self._order: tuple[int, list[list[int]]] | None = None
        self.losses: list[float] = []
        """Training losses since the last validation."""

    @property
    def done(self) -> bool:
        return bool(self.progress.stopped) or self.progress.step >= self.total_steps

    @property
    def epoch(self) -> float:
        return self.progress.step / self.batches_per_epoch

    def next_rows(self) -> list[Encoded]:
        """The rows of the next optimizer step."""
        epoch, index = divmod(self.progress.step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            lengths = [row.length for row in self.train]
            order = epoch_order(lengths, self.settings.batch_size, self.seed, epoch, self.settings.group_by_length)
            self._order = epoch, order
        return [self.train[i] for i in self._order[1][index]]

    def context(self, micro: int) -> Rows:
        """What its edits may know in this step; `micro` numbers the passes within the step."""
        return Rows(training=True, seed=(self.seed * 1_000_003 + self.progress.step) * 64 + micro)

    def penalty(self) -> Tensor | None:
        """Sum of its methods' penalties."""
        found = [part.method.penalty(part, self.progress.step / max(1, self.total_steps)) for part in self.parts]
        terms = [term for term in found if term is not None]
        return torch.stack(terms).sum() if terms else None

    def step(self, loss: float) -> None:
        """Clips, steps the optimizer with the scheduled rate, and counts. Gradients are ready."""
        assert self.optimizer is not None
        step, total = self.progress.step, self.total_steps
        for part in self.parts:
            part.method.after_backward(part, step, total)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is {norm.item()} at step {step + 1}")
        factor = schedule(step, total, self.settings)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        for part in self.parts:
            part.method.after_step(part, step, total)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.losses.append(loss)

    @property
    def wants_validation(self) -> bool:
        every = max(1, self.batches_per_epoch // self.settings.validations_per_epoch)
        return self.progress.step % every == 0 or self.progress.step >= self.total_steps

    def validated(self, loss: float) -> None:
        """Books a validation loss: keeps the best tensors, counts patience."""
        p = self.progress
        train_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        p.history.append(Validation(self.epoch, p.step, p.seconds, train_loss, loss))
        self.losses.clear()
        if not p.settled and all(part.method.settled(part) for part in self.parts):
            p.settled, p.best_loss, p.without_gain = True, math.inf, 0  # what was best before does not keep its promise
        if loss < p.best_loss:
            p.best_loss, p.best_epoch, p.best_step, p.best_seconds, p.without_gain = (
                loss,
                self.epoch,
                p.step,
                p.seconds,
                0,
            )
            self.best = {name: tensor.clone() for name, tensor in self.adapter.tensors().items()}
        else:
            p.without_gain += 1
            if p.settled and self.settings.patience is not None and p.without_gain >= self.settings.patience:
                p.stopped = "patience"

    def finish(self) -> None:
        """Puts the best tensors back and lets the methods end (fixed gates, pruned ranks)."""
        if self.best is not None:
            self.adapter.load(self.best)
        for part in self.parts:
            part.method.finish(part)


def schedule(step: int, total: int, settings: TrainingSettings) -> float:
    """Factor of the peak learning rate at a step: linear warm-up, then linear or cosine to zero, or constant."""
    warmup = int(total * settings.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - warmup)
    return left if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
