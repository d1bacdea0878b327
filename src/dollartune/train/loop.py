"""Trains a cohort: one or several trials, of whatever methods, in one pass over one backbone.

Each step, every running trial brings its own next batch; the rows go through the backbone together, each through its
own adapter; each trial's loss, gradient, clipping, optimizer, schedule, validation and early stopping are its own.
Training together equals training alone (within the rounding of differently shaped matrix products).

    run ─> fill frozen prefixes ─> train_step ─┬─> forward_backward (gradients of trials that share a pass)
                  ↑ once           ↑ again     ├─> TrialState.step (clip, schedule, AdamW), one per trial
                                   └───────────┴─> validate, early stopping, watcher
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch

from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.backbones.device_map import refuse_training
from dollartune.train.activation_checkpointing import recomputed_layers
from dollartune.train.batching import VALIDATION_ROWS_AT_ONCE, Batch, Collator, by_length
from dollartune.train.compile_policy import CompilePolicy, Mode
from dollartune.train.distributed import processes
from dollartune.train.forward_backward import ForwardBackward
from dollartune.train.free_memory import PassesTooLarge, limited, over_limit
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.length import BLOCK_ROWS, Planner
from dollartune.train.malloc import keep_freed_memory
from dollartune.train.micro_batch import MemoryBatchLimit, forward_tokens, overhead_tokens, rows_that_fit
from dollartune.train.pace import Pace
from dollartune.train.trial_threads import ROUND_SECONDS, TrialThreads

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded
    from dollartune.train.trial import TrialState


STATES_BYTES = 24
"""Of a trained number in fp32, beside itself: its gradient, AdamW's two moments, the best state, the average of the decay, and
the state that waits while one of these is validated."""


class Watcher(Protocol):
    """Who is told what happens: the progress view, checkpoints, trackers."""

    def stepped(self, trial: TrialState) -> None: ...
    def validated(self, trial: TrialState) -> None: ...
    def ended(self, trial: TrialState) -> None: ...
    def interrupted(self) -> None:
        """The money ends before training does: before a decay that ends with it begins, and where it is spent."""


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
        validation: rows for early stopping, the same for every trial; without any, trials end with their last tensors.
        out_of_time: asked before each step; true ends all trials with what they have.
        failed: called with a trial and its error when one trial's numbers break; the others go on.
        seconds_left: until the money is spent; whether compiling can pay for itself depends on it.
        planner: moves the end of trials whose length comes from money (`TrialState.from_money`), so that they use the time and
            end decayed; see `length.fill_time`. Asked after a few steps, at each look and while the rate decays. Of trials whose
            length is set it is asked at each step, and brings their end nearer where the money ends before; see
            `length.end_decayed`.
        clock: seconds that only grow, by which steps are timed for the planner.
        seconds_per_validation_row: as far as it is known; the planner learns it from the first look on.
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
        seconds_left: Callable[[], float] = lambda: math.inf,
        planner: Planner | None = None,
        clock: Callable[[], float] = time.perf_counter,
        seconds_per_validation_row: float = 0.0,
    ) -> None:
        self.backbone, self.attached, self.trials = backbone, attached, list(trials)
        if attached.placed:
            raise refuse_training(f"training on {backbone.name!r}")
        self.watcher: Watcher = watcher or Silent()
        self.processes = processes()
        self.out_of_time: Callable[[], bool] = lambda: self.processes.agree(out_of_time())
        self.failed = failed
        settings = trials[0].settings
        rows = validation[: settings.validation_rows]
        # looks of growing size read the same blocks first; all rows together are fewer passes where every look reads them all
        block_rows = BLOCK_ROWS if trials[0].from_money else max(1, len(rows))
        self.validation_blocks = [
            self._batches(rows[start : start + block_rows]) for start in range(0, len(rows), block_rows)
        ]
        self.validation = [batch for block in self.validation_blocks for batch in block]
        self.pace: Pace | None = None
        # a repetition follows the plans of its record, whatever the clock says
        if planner is not None and trials[0].repeat is None:
            self.pace = Pace(
                planner, seconds_left, clock, len(rows), seconds_per_validation_row, self.watcher.interrupted
            )
        cache = attached.state.frozen_prefix
        self.frozen_prefix = cache if isinstance(cache, FrozenPrefixCache) else FrozenPrefixCache()
        attached.use_frozen_prefix(self.frozen_prefix)
        self.forward_backward = ForwardBackward(backbone, attached, self.frozen_prefix)
        self.compile_policy = CompilePolicy(
            attached, self._compile_mode(), backbone.name, backbone.device, seconds_left
        )
        self.batch_limit = MemoryBatchLimit(backbone.device, overhead_tokens(backbone), settings.batch_size)
        self.threads: TrialThreads | None = None
        """Where trials run side by side, each on cores of its own."""
        self._prefix_known: set[str] = set()
        """Names of trials whose passes begin above their frozen prefix."""

    def run(self) -> None:
        """Trains every trial to its end, its patience or the deadline; each then holds its best tensors."""
        with ExitStack() as block:
            block.enter_context(self.ready())
            # the order matters: what is known of the frozen prefix decides what a pass saves, what it saves decides how many
            # trials fit, and threads split that number
            self._fill_frozen_prefixes()
            self.fit_passes()
            if len(self.trials) > 1:  # one alone has to fit anyway
                self._measure_memory(self.trials[0])
            self.compile_policy.begin()
            self._open_threads(block)
            while running := [trial for trial in self.trials if not trial.done]:
                if self.out_of_time():
                    self.watcher.interrupted()  # as they are now, so that more money can go on from here
                    for trial in running:
                        trial.progress.stopped = "budget"
                    break
                before = self.pace.clock() if self.pace is not None else 0.0
                if self.threads is not None:
                    self._train_in_threads(running, self.threads)
                else:
                    self.train_step(running)
                if self.pace is not None:
                    self.pace.stepped(running, self.pace.clock() - before)
                if over_limit():
                    raise PassesTooLarge(max(trial.rows_per_pass for trial in running))
            self._try_averages()
            for trial in self.trials:  # a trial that never was validated has nothing to end with but its last tensors
                cut = trial.progress.stopped == "budget" and trial.best is None and trial.progress.step > 0
                if cut and self.validation and trial.repeat is None:
                    self._book(trial, self.block_losses([trial])[0], self._rows_read(None))
        for trial in self.trials:
            trial.progress.compile_seconds += self.compile_policy.seconds / len(self.trials)
            if trial.progress.stopped != "failed":
                trial.finish()
                self.watcher.ended(trial)

    def _try_averages(self) -> None:
        """The average of the decay's states against the best single state, on the validation rows of the last look."""
        for trial in self.trials:
            complete = trial.done and trial.progress.stopped in ("", "patience")
            if not complete or trial.repeat is not None:
                continue
            if not self.validation:
                trial.keep_average()
                continue
            if not self._time_for_a_look():
                continue
            if trial.try_average():
                (blocks,) = self.block_losses([trial])
                trial.average_validated(_mean(blocks), blocks)

    def _time_for_a_look(self) -> bool:
        """Whether the seconds left pay for all validation rows once more; what is measured beyond the last look is no duty."""
        return self.pace is None or self.pace.look_seconds() <= self.pace.seconds_left()

    def _batches(self, rows: Sequence[Encoded]) -> list[Batch]:
        # without a backward pass there is memory for more rows than a training step has
        batches = by_length(
            [row.length for row in rows],
            max(self.trials[0].settings.batch_size, VALIDATION_ROWS_AT_ONCE),
            most_tokens=forward_tokens(self.backbone) / len(self.trials),
        )
        collate = Collator(self.backbone)
        return [collate([rows[i] for i in batch]) for batch in batches]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the block, the backbone is as training wants it: its kernels, its dropout, its memory.

        A step outside gives the same numbers within rounding, and takes longer.
        """
        settings = self.trials[0].settings
        # within a limit what is freed goes back: kept, it would count as taken, and pieces of other sizes would come beside it
        if self.backbone.device.type == "cpu" and not limited(self.backbone.device):
            keep_freed_memory()
        # off by default: frozen layers then give the same states each time, which is what their cache lives from
        self.backbone.model.train(settings.backbone_dropout)
        try:
            with fast_kernels(self.attached), recomputed_layers(self.attached, settings.gradient_checkpointing):
                try:
                    yield
                finally:
                    self.compile_policy.end()  # before the kernels beneath it go
        finally:
            self.forward_backward.cuda_graphs.clear()
            self.backbone.model.eval()

    def train_step(self, running: Sequence[TrialState]) -> None:
        """One optimizer step of every running trial."""
        # performance counters, not the ledger's clock: they only compare steps with each other
        started, tokens = time.perf_counter(), sum(trial.progress.tokens for trial in running)
        self._optimizer_step(running, self.forward_backward)
        tokens = sum(trial.progress.tokens for trial in running) - tokens
        left = max(trial.total_steps - trial.progress.step for trial in running)
        self.compile_policy.stepped(tokens, time.perf_counter() - started, left)
        self._validate_and_tell(running)

    def _train_in_threads(self, running: Sequence[TrialState], threads: TrialThreads) -> None:
        """Steps of trials in threads, until the threads meet; at least one of every trial."""
        until = time.perf_counter() + ROUND_SECONDS

        def work(forward_backward: ForwardBackward, trials: list[TrialState]) -> None:
            while going := [trial for trial in trials if not trial.done]:
                # cores work at the same time: a second of one thread is only its share of a second of the machine
                self._optimizer_step(going, forward_backward, 1 / len(threads.forward_backwards))
                due = bool(self.validation) and any(trial.wants_validation for trial in going)
                if due or time.perf_counter() > until:
                    return

        threads.run(work)
        for part in threads.parts:  # each for itself: who else is validated just then depends on how fast a core is
            self._validate_and_tell([trial for trial in part if trial in running])

    def _optimizer_step(
        self, running: Sequence[TrialState], forward_backward: ForwardBackward, share: float = 1.0
    ) -> None:
        """One optimizer step of every one of some trials; `share` of its seconds is theirs."""
        waiting = list(running)
        # a pass is as wide as its longest row, and virtual tokens widen it too
        widths = {t.name: max(row.length for row in t.next_rows()) + t.adapter.virtual_tokens() for t in running}
        while waiting:
            together = self._next_pass(waiting, widths)
            try:
                self._step_together(together, forward_backward, share)
            except Exception as error:
                if not (self.batch_limit.halve(error, len(together)) or self.compile_policy.gave_up(error)):
                    raise
                for trial in together:  # nothing of the step is done yet but some gradients
                    trial.adapter.zero_grad(set_to_none=True)
                continue
            waiting = [trial for trial in waiting if trial not in together]

    def _validate_and_tell(self, running: Sequence[TrialState]) -> None:
        """Validates what is due after a step, and tells the watcher."""
        going = [trial for trial in running if trial.progress.stopped != "failed"]
        if self.validation and (due := [trial for trial in going if trial.wants_validation]):
            self.validate(due)
        for trial in going:  # after its validation: a checkpoint between the two would leave the validation out
            self.watcher.stepped(trial)

    def _compile_mode(self) -> Mode:
        """`auto` leaves layers alone where another way is taken: run twice, in shards, or in passes so small that starting
        kernels is what takes time."""
        settings, train = self.trials[0].settings, self.trials[0].train
        if settings.compile != "auto":
            return settings.compile
        tokens = settings.batch_size * len(self.trials) * statistics.fmean(row.length for row in train)
        # where starting kernels is what takes time, recorded CUDA graphs gain more than fused kernels do
        small = tokens <= overhead_tokens(self.backbone)
        return "never" if settings.gradient_checkpointing or self.processes.size > 1 or small else "auto"

    def _open_threads(self, block: ExitStack) -> None:
        """Threads for a cohort on a processor with several cores, where trials have nothing in common but the weights."""
        settings, threads = self.trials[0].settings, torch.get_num_threads()
        count = min(threads, len(self.trials))
        apart = not (settings.backbone_dropout or settings.gradient_checkpointing or self.compile_policy.on)
        if (
            count < 2
            or not apart
            or self._prefix_known
            or self.processes.size > 1
            or self.backbone.device.type != "cpu"
        ):
            return
        self.threads = TrialThreads(self.backbone, self.forward_backward, self.trials, count)
        self.batch_limit.trials = max(
            1, self.batch_limit.trials // count
        )  # their passes are in memory at the same time
        block.enter_context(self.threads.open())

    def _fill_frozen_prefixes(self) -> None:
        """Computes, for trials whose rows pass more than once, what leaves their frozen prefix; a few rows of like length at a
        time, always the same ones, so that a run that was interrupted goes on with the same bits."""
        if self.backbone.model.training or self.processes.size > 1:
            return
        groups: dict[tuple[tuple[str, int], ...], list[TrialState]] = {}
        for trial in self.trials:
            untouched = trial.adapter.untouched(self.attached.anatomy)
            if self.backbone.kind == "encoder_decoder" and self.backbone.objective == "classification":
                untouched["decoder"] = 0  # it reads what the model makes of the encoder's input, row by row
            if any(untouched.values()) and not trial.done:
                groups.setdefault(tuple(untouched.items()), []).append(trial)
        for key, trials in groups.items():
            counts = dict(key)
            passes = sum((t.total_steps - t.progress.step) / t.batches_per_epoch for t in trials)
            # Seen once: computing in advance saves nothing, unless others come after it; where money decides, a part of a pass
            # must not wait for all rows.
            waits = self.pace is not None and trials[0].from_money
            if passes <= 1 and (waits or not self.frozen_prefix.reuse):
                continue
            started, names = time.perf_counter(), [trial.name for trial in trials]
            computed = self.frozen_prefix.computed_tokens
            for train in {id(trial.train): trial.train for trial in trials}.values():
                batches = (
                    self.forward_backward.collate([train[i] for i in at])
                    for at in by_length(
                        [e.length for e in train],
                        VALIDATION_ROWS_AT_ONCE,
                        most_tokens=forward_tokens(self.backbone),
                    )
                )
                for batch in chain(batches, self.validation):
                    if self.out_of_time():
                        return
                    self.frozen_prefix.fill(self.attached, counts, batch.to(self.backbone.device), names)
            for trial in trials:
                self._prefix_known.add(trial.name)
                trial.progress.frozen_prefix_layers = counts
                trial.progress.frozen_prefix_tokens_computed += (self.frozen_prefix.computed_tokens - computed) // len(
                    trials
                )
            self._share_time(trials, time.perf_counter() - started)

    def fit_passes(self) -> None:
        """Makes training passes as small as a limit of memory asks for; without one leaves them alone."""
        if not limited(self.backbone.device):
            return
        saved, tokens = self.forward_backward.saved_bytes(self.trials[0])
        states = STATES_BYTES * sum(trial.adapter.count() for trial in self.trials)
        longest = max(row.length for trial in self.trials for row in trial.train)
        most = rows_that_fit(saved, tokens, longest, states, self.backbone.device)
        if most == 0:
            raise PassesTooLarge(1)
        for trial in self.trials:
            trial.fit_passes(most)

    def _measure_memory(self, trial: TrialState) -> None:
        """Sees what training saves per token."""
        saved, tokens = self.forward_backward.saved_bytes(trial)
        # the widest rows that can come, not the middle one that was measured: a cohort must not fail at its longest batch
        rows = trial.rows_per_pass
        self.batch_limit.measure(saved, tokens, rows * max(e.length for e in trial.train))

    def _next_pass(self, waiting: Sequence[TrialState], widths: Mapping[str, int]) -> list[TrialState]:
        """Trials with the frozen prefix of the first one and rows of like length, as many as there is memory for."""
        prefix = self._prefix_of(waiting[0])
        alike = [trial for trial in waiting if self._prefix_of(trial) == prefix]
        return self.batch_limit.together(alike, [widths[trial.name] for trial in alike])

    def _prefix_of(self, trial: TrialState) -> tuple[tuple[str, int], ...]:
        return (
            ()
            if trial.name not in self._prefix_known
            else tuple(trial.adapter.untouched(self.attached.anatomy).items())
        )

    def _step_together(self, trials: Sequence[TrialState], forward_backward: ForwardBackward, share: float) -> None:
        """One optimizer step of trials that share a pass."""
        started = time.perf_counter()
        losses = forward_backward.gradients(trials)
        # each trial for itself from here on: one whose numbers break must not take the others with it
        for trial, loss in zip(trials, losses, strict=True):
            try:
                trial.step(loss)
            except FloatingPointError as error:
                self._fail(trial, error)
        self._share_time(trials, share * (time.perf_counter() - started))

    def validate(self, due: Sequence[TrialState]) -> None:
        """Measures the validation loss of trials; each keeps its best tensors and counts its patience."""
        for rows in sorted({trial.look_rows for trial in due}):
            alike = [trial for trial in due if trial.look_rows == rows]
            for trial, blocks in zip(alike, self.block_losses(alike, rows), strict=True):
                loss = _mean(blocks)
                if math.isfinite(loss) or trial.best is not None:  # what was best before may still be of use
                    self._book(trial, blocks, self._rows_read(rows))
                else:
                    what = f"the validation loss is {loss} at step {trial.progress.step}"
                    self._fail(trial, FloatingPointError(what))
        for trial in due:
            self.watcher.validated(trial)

    def _book(self, trial: TrialState, blocks: Sequence[tuple[float, int]], read: int) -> None:
        best = trial.progress.best_blocks
        fewer = trial.best is not None and trial.from_money and trial.done and len(best) < len(blocks)
        if trial.best is not None and fewer and self._time_for_a_look():
            # what won on the few rows of an early look may have been lucky there: the last choice is made on all of them
            now = trial.exchange(trial.best)
            (measured,) = self.block_losses([trial])
            trial.best_validated(_mean(measured), measured)
            trial.exchange(now)
        trial.validated(_mean(blocks), blocks, read)

    def _blocks_of(self, rows: int | None) -> Sequence[Sequence[Batch]]:
        """Blocks that are read for so many rows."""
        return (
            self.validation_blocks if rows is None else self.validation_blocks[: max(1, math.ceil(rows / BLOCK_ROWS))]
        )

    def _rows_read(self, rows: int | None) -> int:
        return sum(batch.rows for block in self._blocks_of(rows) for batch in block)

    def validation_losses(self, trials: Sequence[TrialState]) -> list[float]:
        """Mean validation loss per target of each trial, over all rows; its seconds are booked to it."""
        return [_mean(blocks) for blocks in self.block_losses(trials)]

    def block_losses(self, trials: Sequence[TrialState], rows: int | None = None) -> list[list[tuple[float, int]]]:
        """(summed loss, targets) of each trial in each block of validation rows; its seconds are booked to it.

        Args:
            rows: that are enough; whole blocks are read, the same ones first. None: all.
        """
        blocks = self._blocks_of(rows)
        by_name: dict[str, list[tuple[float, int]]] = {}
        waiting = list(trials)
        widths = {trial.name: trial.adapter.virtual_tokens() for trial in trials}
        before, took = self.pace.clock() if self.pace is not None else 0.0, 0.0
        while waiting:
            together = self._next_pass(waiting, widths)
            started = time.perf_counter()
            losses = self.forward_backward.validation_losses(together, blocks)
            by_name.update(zip([trial.name for trial in together], losses, strict=True))
            seconds = time.perf_counter() - started
            self._share_time(together, seconds)
            took += seconds
            waiting = [trial for trial in waiting if trial not in together]
        if self.pace is not None:
            read = self._rows_read(rows)
            self.pace.validated(self.pace.clock() - before, read)
            for trial in trials:
                trial.progress.seconds_per_row = took / max(1, read) / len(trials)
        return [by_name[trial.name] for trial in trials]

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


def _mean(blocks: Sequence[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in blocks) / max(1, sum(targets for _, targets in blocks))
