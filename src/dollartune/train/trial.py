"""One trial in training: its adapter, and its own optimizer, learning-rate schedule, data order, early stopping and history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.fsdp import whole
from dollartune.methods.edits import Rows
from dollartune.train.batching import epoch_order
from dollartune.train.diverged import check_gradient, check_loss, check_weights, weights_may_have_left, zero_gradients
from dollartune.train.early_stopping import is_best, patience_ended, settle
from dollartune.train.encoding import Encoded
from dollartune.train.lr_schedule import learning_rate_factor
from dollartune.train.optimizers import build_optimizer
from dollartune.train.progress import Progress, Validation
from dollartune.train.settings import TrainingSettings


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
        all_steps = self.batches_per_epoch * settings.epochs_for(len(train))
        self.total_steps = max(1, round(fraction * all_steps) if steps is None else steps)
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
        # made once per epoch; a resumed run makes the same one from (seed, epoch)
        if self._order is None or self._order[0] != epoch:
            lengths = [row.length for row in self.train]
            order = epoch_order(lengths, self.settings.batch_size, self.seed, epoch, self.settings.group_by_length)
            self._order = epoch, order
        return [self.train[i] for i in self._order[1][index]]

    def context(self, micro: int) -> Rows:
        """What its edits may know in this step; `micro` numbers the passes within the step."""
        # a prime between seeds and 64 passes between steps: no two (seed, step, pass) of a study draw the same masks
        return Rows(training=True, seed=(self.seed * 1_000_003 + self.progress.step) * 64 + micro)

    def penalty(self) -> Tensor | None:
        """Sum of its methods' penalties, a number to add to the loss; None where they have none."""
        terms = [part.method.penalty(part, self.progress.step / max(1, self.total_steps)) for part in self.parts]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def step(self, loss: float) -> None:
        """One optimizer step: clips, takes the schedule's learning rate, updates, counts. Gradients are ready.

        Args:
            loss: mean per target, of the batch that gave the gradients.

        Raises:
            FloatingPointError: the run has diverged; see `diverged`.
        """
        assert self.optimizer is not None
        progress, total = self.progress, self.total_steps
        number = progress.step + 1
        check_loss(loss, number)
        for part in self.parts:
            part.method.after_backward(part, progress.step, total)
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(whole(torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)))
        check_gradient(norm, number)
        if trained:  # a method may give no gradients for a while; it then has no norm either
            progress.zero_gradients = zero_gradients(norm, loss, progress.zero_gradients, number)
        factor = learning_rate_factor(progress.step, total, self.settings)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        for part in self.parts:
            part.method.after_step(
                part, progress.step, total
            )  # gradients are still there: AdaLoRA's importance needs them
        self.optimizer.zero_grad(set_to_none=True)
        progress.step = number
        self.losses.append(loss)
        if weights_may_have_left(self.peak_rates, number):
            check_weights((whole(p.detach()) for p in trained), number)

    @property
    def wants_validation(self) -> bool:
        every = max(1, self.batches_per_epoch // self.settings.validations_per_epoch)
        return self.progress.step % every == 0 or self.progress.step >= self.total_steps

    def validated(self, loss: float) -> None:
        """Books a validation loss: keeps the best tensors, counts patience."""
        progress = self.progress
        train_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        progress.history.append(Validation(self.epoch, progress.step, progress.seconds, train_loss, loss))
        self.losses.clear()
        if not progress.settled and all(part.method.settled(part) for part in self.parts):
            settle(progress)
        if is_best(progress, loss, self.epoch):
            self.best = {name: tensor.clone() for name, tensor in self.adapter.tensors().items()}
        elif patience_ended(progress, self.settings.patience):
            progress.stopped = "patience"

    def finish(self) -> None:
        """Puts the best tensors back and lets the methods end (fixed gates, pruned ranks)."""
        if self.best is not None:
            self.adapter.load(self.best)
        for part in self.parts:
            part.method.finish(part)
