"""Trains a cohort: one or several trials, of whatever methods, in one pass over one backbone.

Each step, every running trial brings its own next batch; the rows go through the backbone together, each through its
own adapter; each trial's loss, gradient, clipping, optimizer, schedule, validation and early stopping are its own.
Training together equals training alone (within the rounding of differently shaped matrix products).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from dollartune.attach.attached import Assignment, Attached
from dollartune.backbones.loading import Backbone
from dollartune.methods.edits import Rows
from dollartune.train.batching import Collator, by_length, side_by_side
from dollartune.train.encoding import Encoded
from dollartune.train.loss import trial_losses
from dollartune.train.trial import TrialState


class Watcher(Protocol):
    """Who is told what happens: the progress view, checkpoints, trackers."""

    def stepped(self, trial: TrialState) -> None: ...
    def validated(self, trial: TrialState) -> None: ...
    def ended(self, trial: TrialState) -> None: ...
    def interrupted(self) -> None: ...


class Silent:
    """A watcher that does nothing."""

    def stepped(self, trial: TrialState) -> None:
        return None

    def validated(self, trial: TrialState) -> None:
        return None

    def ended(self, trial: TrialState) -> None:
        return None

    def interrupted(self) -> None:
        return None


class CohortTrainer:
    """Trains trials side by side on one backbone.

    Args:
        backbone, attached: the model, and the same model with every trial's adapter attached.
        validation: rows for early stopping, the same for every trial.
        out_of_time: asked before each step; true ends all trials with what they have.
        failed: called with a trial and its error when one trial's numbers break; the others go on.
    """

    def __init__(
        self,
        backbone: Backbone,
        attached: Attached,
        trials: Sequence[TrialState],
        validation: Sequence[Encoded],
        watcher: Watcher | None = None,
        out_of_time: Callable[[], bool] = lambda: False,
        failed: Callable[[TrialState, Exception], None] | None = None,
    ) -> None:
        self.backbone, self.attached, self.trials = backbone, attached, list(trials)
        self.collate = Collator(backbone)
        self.watcher: Watcher = watcher or Silent()
        self.out_of_time = out_of_time
        self.failed = failed
        settings = trials[0].settings
        rows = validation[: settings.validation_rows]
        batches = by_length([row.length for row in rows], max(settings.batch_size, 32))
        self.validation = [self.collate([rows[i] for i in batch]) for batch in batches]

    def run(self) -> None:
        """Trains every trial to its end, its patience or the deadline; each then holds its best tensors."""
        self.backbone.model.train(self.trials[0].settings.backbone_dropout)
        try:
            while running := [trial for trial in self.trials if not trial.done]:
                if self.out_of_time():
                    self.watcher.interrupted()  # as they are now, so that more money can go on from here
                    for trial in running:
                        trial.progress.stopped = "budget"
                    break
                self.step(running)
        finally:
            self.backbone.model.eval()
        for trial in self.trials:
            if trial.progress.stopped != "failed":
                if trial.progress.stopped == "budget" and trial.best is None and trial.progress.step:
                    trial.validated(self.validation_losses([trial])[0])
                trial.finish()
                self.watcher.ended(trial)

    def step(self, running: Sequence[TrialState]) -> None:
        """One optimizer step of every running trial."""
        started = time.perf_counter()
        losses = self._gradients(running)
        for trial, loss in zip(running, losses, strict=True):
            try:
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the training loss is {loss} at step {trial.progress.step + 1}")
                trial.step(loss)
            except FloatingPointError as error:
                self._fail(trial, error)
        going = [trial for trial in running if trial.progress.stopped != "failed"]
        self._share_time(running, time.perf_counter() - started)
        for trial in going:
            self.watcher.stepped(trial)
        if due := [trial for trial in going if trial.wants_validation]:
            started = time.perf_counter()
            found = self.validation_losses(due)
            self._share_time(due, time.perf_counter() - started)
            for trial, loss in zip(due, found, strict=True):
                if math.isfinite(loss) or trial.best is not None:  # what was best before may still be of use
                    trial.validated(loss)
                else:
                    what = f"the validation loss is {loss} at step {trial.progress.step}"
                    self._fail(trial, FloatingPointError(what))
            for trial in due:
                self.watcher.validated(trial)

    def _gradients(self, running: Sequence[TrialState]) -> list[float]:
        """Fills gradients with each trial's mean loss per target over its whole batch, in micro-batches where asked."""
        rows = [trial.next_rows() for trial in running]
        micro = running[0].settings.micro_batch_size or max(len(r) for r in rows)
        totals = [0.0] * len(running)
        counts = [sum(len(e.answer) or 1 for e in r) for r in rows]
        for number, start in enumerate(range(0, max(len(r) for r in rows), micro)):
            parts = [(i, r[start : start + micro]) for i, r in enumerate(rows) if r[start : start + micro]]
            batches = [self.collate(part) for _, part in parts]
            batch, row_slices, target_slices = side_by_side(batches, self.collate.pad)
            batch = batch.to(self.backbone.device)
            chosen = [running[i] for i, _ in parts]
            assignments = self._assignments(chosen, row_slices, number)
            losses = trial_losses(self.attached, batch, assignments, target_slices)
            terms = []
            for (i, part), loss in zip(parts, losses, strict=True):
                totals[i] += loss.item() / counts[i]
                terms.append(loss / counts[i])
                running[i].progress.examples += len(part)
                running[i].progress.tokens += sum(e.length for e in part)
            if number == 0:
                terms += [penalty for trial in running if (penalty := trial.penalty()) is not None]
            torch.stack(terms).sum().backward()
        return totals

    def _assignments(self, trials: Sequence[TrialState], rows: Sequence[slice], micro: int | None) -> list[Assignment]:
        contexts = [Rows() if micro is None else trial.context(micro) for trial in trials]
        if len(trials) == 1:
            return [Assignment(trials[0].adapter, slice(None), contexts[0])]
        return [Assignment(t.adapter, r, c) for t, r, c in zip(trials, rows, contexts, strict=True)]

    @torch.no_grad()
    def validation_losses(self, trials: Sequence[TrialState]) -> list[float]:
        """Mean validation loss per target of each trial; every batch passes once, with a copy of its rows per trial."""
        self.backbone.model.eval()
        sums, count = [0.0] * len(trials), 0
        for batch in self.validation:
            joined, rows, targets = side_by_side([batch] * len(trials), self.collate.pad)
            joined = joined.to(self.backbone.device)
            losses = trial_losses(self.attached, joined, self._assignments(trials, rows, None), targets)
            sums = [total + loss.item() for total, loss in zip(sums, losses, strict=True)]
            count += batch.targets.shape[0]
        self.backbone.model.train(trials[0].settings.backbone_dropout)
        return [total / max(1, count) for total in sums]

    def _share_time(self, trials: Sequence[TrialState], seconds: float) -> None:
        """Divides a shared pass among its trials in equal parts."""
        for trial in trials:
            trial.progress.seconds += seconds / len(trials)

    def _fail(self, trial: TrialState, error: Exception) -> None:
        trial.progress.stopped, trial.progress.error = "failed", str(error)
        trial.adapter.zero_grad(set_to_none=True)
        if self.failed is None:
            raise error
        self.failed(trial, error)
