"""One trial in training: its adapter, and its own optimizer, learning-rate schedule, data order, early stopping and history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.fsdp import whole
from dollartune.errors import UserError
from dollartune.methods.edits import Rows
from dollartune.train.averages import AVERAGED_STATES, add_state
from dollartune.train.batching import epoch_order
from dollartune.train.calibrated_loss import balanced_weights
from dollartune.train.diverged import check_gradient, check_loss, check_weights, weights_may_have_left, zero_gradients
from dollartune.train.early_stopping import book_best, end_wins, is_best, patience_ended, settle
from dollartune.train.length import Replan, is_look, look_rows
from dollartune.train.lr_schedule import DECAY_SHARE, Schedule, decay_progress, learning_rate_factor, warmup_steps
from dollartune.train.optimizers import build_optimizer
from dollartune.train.progress import Progress, Validation

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.methods.base import ParameterGroup
    from dollartune.train.encoding import Encoded
    from dollartune.train.repeat import Repeat
    from dollartune.train.settings import TrainingSettings


class TrialState:
    """A trial's moving parts. It never touches the global random generator, so trials do not disturb each other.

    Args:
        fraction: share of the study's training that this trial gets, with a schedule of its own that ends there.
        steps: optimizer steps that it gets, in place of a share.
        from_money: its length comes from money: looks at growing steps, a schedule whose end may be moved (`replan`).
        begun_with: folder of the adapter whose tensors `adapter` begins with; empty where they are fresh.
        repeat: what a recorded training did, to be done again; its plan then counts, and nothing is decided anew.
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
        from_money: bool = False,
        repeat: Repeat | None = None,
        begun_with: str = "",
    ) -> None:
        self.name, self.adapter, self.train, self.settings, self.seed = name, adapter, train, settings, seed
        # Any: parts have their methods as attributes, which nn.ModuleList does not know.
        self.parts: list[Any] = list(adapter.parts)
        self.progress = Progress(begun_with=begun_with)
        self.batches_per_epoch = math.ceil(len(train) / settings.batch_size)
        self.from_money, self.repeat = from_money, repeat
        self.schedule: Schedule = "linear"
        if settings.schedule != "auto":
            self.schedule = settings.schedule
        elif from_money:
            self.schedule = "wsd"
        first = max(1, round(fraction * settings.steps_for(len(train))) if steps is None else steps)
        self._to_come = list(repeat.plan) if repeat is not None else []
        """Plans of a recorded training that are still to be followed."""
        self.progress.plan = [self._to_come.pop(0) if self._to_come else Replan(0, first)]
        groups: list[ParameterGroup] = []
        for part in self.parts:
            groups += [g for g in part.method.parameter_groups(part) if g["params"]]
        self.optimizer = build_optimizer(groups, settings.optimizer) if groups else None
        # Before the schedule writes its own into the groups.
        self.peak_rates = [group["lr"] for group in groups]
        self.class_weights = _class_weights(train, settings)
        self._weights_there = self.class_weights
        """On the device of the last pass."""
        self.best: dict[str, Tensor] | None = None
        self.average: dict[str, Tensor] | None = None
        """Running average of the states of the decay."""
        self._order: tuple[int, list[list[int]]] | None = None
        self.losses: list[float] = []
        """Training losses since the last validation."""
        self._least_steps = settings.steps_for(len(train)) if from_money else 0
        """Before that patience ends nothing: where a task is hard to begin with, the loss stands still first, and a score may
        rise while it does. Where money decides, no shorter run was going to use it better."""

    def class_weights_on(self, device: torch.device) -> Tensor | None:
        """(classes,), moved once: a copy from the host in each pass would make the host wait, and no pass could be recorded."""
        if self._weights_there is not None and self._weights_there.device != device:
            self._weights_there = self._weights_there.to(device)
        return self._weights_there

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training, as planned now."""
        return self.progress.plan[-1].total_steps

    @property
    def done(self) -> bool:
        return bool(self.progress.stopped) or self.progress.step >= self.total_steps

    @property
    def decaying(self) -> bool:
        """Whether the learning rate is falling."""
        progress = self.progress
        if self.schedule == "wsd":
            return decay_progress(progress.step, progress.plan) > 0
        return self.schedule != "constant" and progress.step > warmup_steps(progress.plan, self.settings.warmup)

    @property
    def about_to_decay(self) -> bool:
        """Whether the next step but one is made at a lower rate: the last moment at which the end may be moved away."""
        return self.schedule == "wsd" and decay_progress(self.progress.step + 1, self.progress.plan) > 0

    @property
    def can_extend(self) -> bool:
        """Whether the end may still be moved away."""
        return not self.decaying and not self.progress.ending

    @property
    def can_shorten(self) -> bool:
        """Whether the end may still come nearer."""
        return self.schedule == "wsd" or not self.decaying

    def cut(self, total_steps: int) -> None:
        """Lets a training whose length is set end with the money, after so many steps; its rate falls from now on.

        When that is may be told again, sooner or later: the rate never rises.
        """
        self.progress.ending = "budget"
        total_steps = min(max(total_steps, self.progress.step + 1), self.progress.plan[0].total_steps)
        if total_steps != self.total_steps:
            self.progress.plan.append(Replan(self.progress.step, total_steps))

    def replan(self, total_steps: int) -> None:
        """Moves the end of training; what was trained stays as it is.

        Args:
            total_steps: of the whole training, those that are done included.

        Raises:
            ValueError: these steps are done already, or the rate is falling: it cannot be raised again, so that with `wsd` the
                end may only come nearer then, and with `linear` and `cosine`, which fall from the warm-up on, not move at all.
        """
        step, planned = self.progress.step, self.total_steps
        if total_steps <= step:
            raise ValueError(f"{step} steps are done: a total of {total_steps} cannot be planned any more.")
        if not (self.can_extend if total_steps > planned else total_steps == planned or self.can_shorten):
            raise ValueError(
                f"the end of training cannot be moved from {planned} to {total_steps} steps at step {step}: the rate of schedule "
                f"{self.schedule!r} is falling. With `wsd` it may be moved away until the decay over the last fifth begins."
            )
        if total_steps != planned:
            self.progress.plan.append(Replan(step, total_steps))

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

    @property
    def rows_per_pass(self) -> int:
        """The most that pass at once."""
        return self.settings.micro_batch_size or self.settings.batch_size

    def fit_passes(self, most_rows: int) -> None:
        """Lets no more rows than that pass at once; gradients of a batch are the same in any number of passes."""
        rows = min(most_rows, self.rows_per_pass)
        self.settings = self.settings.model_copy(update={"micro_batch_size": rows})

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
        # of copies that lie in shards, the norm is in shards too
        norm = float(whole(torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)))
        check_gradient(norm, number)
        if trained:  # a method may give no gradients for a while; it then has no norm either
            progress.zero_gradients = zero_gradients(norm, loss, progress.zero_gradients, number)
        factor = learning_rate_factor(progress.step, progress.plan, self.schedule, self.settings.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            # The rate is set before the step that it is meant for, so the first step is one of the warm-up.
            group["lr"] = peak * factor
        self.optimizer.step()
        for part in self.parts:
            part.method.after_step(
                part, progress.step, total
            )  # gradients are still there: AdaLoRA's importance needs them
        self.optimizer.zero_grad(set_to_none=True)
        progress.step = number
        self.losses.append(loss)
        # After counting: the average begins with the decay, which is a matter of the step's number.
        self._keep_average()
        self._follow_record()
        if weights_may_have_left(self.peak_rates, number):
            check_weights((whole(p.detach()) for p in trained), number)

    @property
    def wants_validation(self) -> bool:
        step = self.progress.step
        if self.repeat is not None:  # what it ends with is recorded
            return False
        if self.from_money:
            return step >= self.total_steps or is_look(step)
        return step % self.steps_between_validations == 0 or step >= self.total_steps

    @property
    def steps_between_validations(self) -> int:
        """Where its length is set."""
        return max(1, self.batches_per_epoch // self.settings.validations_per_epoch)

    @property
    def look_rows(self) -> int:
        """Validation rows of a look now: fewer in the beginning where the length comes from money, all at the end."""
        most = self.settings.validation_rows
        if not self.from_money or self.done:
            return most
        return min(most, look_rows(self.progress.step, self.settings.batch_size))

    def validated(self, loss: float, blocks: Sequence[tuple[float, int]] = (), rows: int = 0) -> None:
        """Books a validation loss: keeps the best tensors, counts patience.

        Args:
            loss: mean per target.
            blocks: (summed loss, targets) of each block of rows, in the order in which every look reads them.
            rows: that were read.
        """
        progress = self.progress
        train_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        progress.history.append(Validation(self.epoch, progress.step, progress.seconds, train_loss, loss, rows))
        self.losses.clear()
        if not progress.settled and all(part.method.settled(part) for part in self.parts):
            settle(progress)
        if is_best(progress, loss, self.epoch, blocks):
            self.best = {name: tensor.clone() for name, tensor in self.adapter.tensors().items()}
        elif patience_ended(progress, self.settings.patience) and progress.step >= self._least_steps:
            self._end_by_patience()

    def _end_by_patience(self) -> None:
        """At once; a training from money whose rate is still up comes to its decay first, which often brings what was missing.
        One that ends already comes to its end."""
        progress = self.progress
        if progress.ending:
            return
        if not self.from_money or self.schedule != "wsd":
            progress.stopped = "patience"
        else:
            progress.ending = "patience"
            decay = max(
                1, round(DECAY_SHARE / (1 - DECAY_SHARE) * progress.step)
            )  # a fifth of the steps that it then has
            if progress.step + decay < self.total_steps:
                self.replan(progress.step + decay)

    def _keep_average(self) -> None:
        """Takes the state into the average of the decay, where its length comes from money. Methods whose ranks or gates are
        still changing have no states that could be averaged."""
        if not self.from_money or self.schedule != "wsd" or not self.decaying:
            return
        every = max(1, round(DECAY_SHARE * self.total_steps / AVERAGED_STATES))
        if (self.total_steps - self.progress.step) % every or not all(p.method.settled(p) for p in self.parts):
            return
        tensors = self.adapter.tensors()
        if self.average is None or any(t.shape != self.average[name].shape for name, t in tensors.items()):
            self.average, self.progress.averaged = {name: t.clone() for name, t in tensors.items()}, 1
            return
        self.progress.averaged += 1
        add_state(self.average, tensors, self.progress.averaged)

    def exchange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Puts tensors into the adapter, to be validated; returns a copy of those that were there."""
        before = {name: tensor.clone() for name, tensor in self.adapter.tensors().items()}
        self.adapter.load(tensors)
        return before

    def best_validated(self, loss: float, blocks: Sequence[tuple[float, int]]) -> None:
        """Books a new measurement of the best state so far, on more rows than the one that made it the best."""
        self.progress.best_loss, self.progress.best_blocks = loss, list(blocks)

    def try_average(self) -> bool:
        """Puts the average of the decay's states into the adapter, to be validated; False where there is none worth it."""
        if self.average is None or self.progress.averaged < 2:
            return False
        self.adapter.load(self.average)
        return True

    def keep_average(self) -> None:
        """Ends with the average of the decay's states where no validation rows can be asked: it was hardly ever the worse one."""
        if self.try_average():
            self.progress.average, self.best, self.progress.best_step = "decay", self.average, self.progress.step

    def average_validated(self, loss: float, blocks: Sequence[tuple[float, int]]) -> None:
        """Books the average's validation loss, on all rows as the best state's; what the trial ends with is decided by it."""
        if end_wins(self.progress, blocks):
            book_best(self.progress, loss, self.epoch, blocks)
            self.progress.average, self.best = "decay", self.average

    def _follow_record(self) -> None:
        """Makes the plans that a recorded training made at this step, and keeps the state that it ended with."""
        if self.repeat is None:
            return
        progress = self.progress
        while self._to_come and self._to_come[0].step == progress.step:
            progress.plan.append(self._to_come.pop(0))
        if progress.step == self.repeat.best_step and not self.repeat.average:
            self.best, progress.best_step = {n: t.clone() for n, t in self.adapter.tensors().items()}, progress.step
        if progress.step == self.repeat.steps:
            progress.stopped = self.repeat.stopped
            if self.repeat.average:
                self.best, progress.average, progress.best_step = self.average, self.repeat.average, progress.step

    def finish(self) -> None:
        """Puts the best tensors back and lets the methods end (fixed gates, pruned ranks)."""
        if self.best is not None:
            self.adapter.load(self.best)
        if self.progress.ending and not self.progress.stopped:
            self.progress.stopped = self.progress.ending
        for part in self.parts:
            part.method.finish(part)


def _class_weights(train: Sequence[Encoded], settings: TrainingSettings) -> Tensor | None:
    if settings.class_weights == "none":
        return None
    if any(row.label < 0 for row in train):
        raise UserError(
            "class_weights: balanced weighs the classes of a classification head; this trial writes its answers as text.",
            hint="objective: classification, or class_weights: none",
        )
    return balanced_weights(torch.tensor([row.label for row in train]))
