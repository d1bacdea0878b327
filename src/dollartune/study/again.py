"""Trains a recorded trial again, by its recorded steps and plans, on no clock, and compares it with the adapter that it left.

record ─> the same trial (its identifier must come out) ─> train by steps ─> tensors ─> equal, or how far apart
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.engines.adapters import average_with
from dollartune.engines.begin_with import begin_with
from dollartune.engines.trial_context import ContextCache, TrialContext
from dollartune.errors import UserError
from dollartune.methods.stored_adapter import WEIGHTS
from dollartune.schedule.search_space import candidates, most_virtual_tokens
from dollartune.study.recorded import record_named, trial_of
from dollartune.train.head_start import begin_at_probe, shift_classes
from dollartune.train.length import Replan
from dollartune.train.loop import CohortTrainer
from dollartune.train.repeat import Repeat
from dollartune.train.solve import FEATURE_ROWS, solve, solve_on_all
from dollartune.train.trial import TrialState
from dollartune.trials.expand import fitting, plan
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial


@dataclass(frozen=True)
class Again:
    """How a trial that was trained again compares with the adapter that it left."""

    trial: str
    label: str
    steps: int
    differing: int
    """Tensors that are not equal bit for bit."""
    tensors: int
    largest: float
    """Largest difference of two numbers."""
    relative: float
    """Norm of the difference over the norm of what was stored, over all tensors."""
    other_threads: tuple[int, int] | None
    """(threads then, threads now) where they differ: sums are then made in another order."""

    @property
    def equal(self) -> bool:
        return self.differing == 0

    @property
    def sentence(self) -> str:
        """What came out, in words."""
        begin = f"{self.label} (trial {self.trial}), trained again by its {self.steps:,} steps:"
        if self.equal:
            return f"{begin} all {self.tensors} tensors are equal, bit for bit."
        why = (
            " Sums are made in another order where trials train together, in smaller passes, on another machine or with "
            "other versions."
        )
        if self.other_threads is not None:
            why = f" It was trained with {self.other_threads[0]} threads, now with {self.other_threads[1]}."
        return (
            f"{begin} {self.differing} of {self.tensors} tensors differ, by {self.largest:.2g} at most, {self.relative:.2g} of"
            f" their norm.{why}"
        )


def run_again(store: Store, settings: StudySettings, identifier: str) -> Again:
    """Trains one trial of a study again.

    Args:
        settings: the study; its folder of outputs is the store's parent.
        identifier: the trial's, or its beginning.

    Raises:
        UserError: there is no such trial, it trained nothing, its adapter was not kept, or settings and data are not what they
            were.
    """
    record = record_named(store, identifier)
    stored = store.folder(record.id) / "adapter"
    if record.training is None:
        raise UserError(
            f"trial {record.id} ({record.trial.label}) trained nothing.", hint="dollartune results STUDY --trials"
        )
    if not (stored / WEIGHTS).is_file():
        raise UserError(
            f"the adapter of trial {record.id} ({record.trial.label}) was not kept, so there is nothing to compare with.",
            hint="keep_adapters: all",
        )
    # The study may have been moved or copied since; its features and cached states lie beside it.
    settings = settings.model_copy(update={"output": str(store.root.parent)})
    planned, tasks, _ = plan(settings)
    trial = trial_of(record, settings, planned)
    # A trial of other methods or sizes began fresh, beside those that did not.
    begun_with = Path(settings.begin_with) if settings.begin_with is not None and record.training.begun_with else None
    if trial.extends is not None:
        begun_with = store.folder(trial.extends) / "adapter"
    # All that the study might have tried: inputs were cut by the longest virtual prefix among it.
    spaces = candidates(settings.methods, planned, fitting(settings, tasks)) if settings.search is not None else []
    context = ContextCache(settings, tasks, most_virtual_tokens(planned, spaces)).context(trial)
    other = None if trial.averaged_with is None else store.folder(trial.averaged_with) / "adapter"
    made = _train(trial, record, settings, context, begun_with, other)
    threads = record.environment.threads, torch.get_num_threads()
    return _compared(record, read_tensors(stored, WEIGHTS), made, None if threads[0] == threads[1] else threads)


def _train(
    trial: Trial,
    record: TrialRecord,
    settings: StudySettings,
    context: TrialContext,
    begun_with: Path | None,
    averaged_with: Path | None,
) -> dict[str, Tensor]:
    """The tensors that the recorded steps lead to."""
    training, recorded = settings.training, record.training
    assert recorded is not None
    # Where it ended and what was kept are given too: both were decided by a clock that is not run again.
    repeat = Repeat(
        [Replan(one.step, one.total_steps) for one in recorded.plan],
        recorded.steps,
        recorded.best_step,
        "" if recorded.stopped == "finished" else recorded.stopped,
        recorded.average,
        recorded.rows_share,
    )
    adapter = context.attached.add(trial.identifier, context.methods(trial), trial.seed)
    try:
        if begun_with is not None:
            beginning = begin_with(begun_with, adapter, context.backbone, context.task)
            if not beginning.begun:
                raise UserError(
                    f"trial {record.id} ({record.trial.label}) began with {begun_with}, which it cannot now: {beginning.remark}."
                )
        on_all = averaged_with is not None
        train = [*context.train, *context.validation] if on_all else context.train
        state = TrialState(
            trial.identifier, adapter, train, training, trial.seed, trial.fraction, trial.steps,
            from_money=trial.length != "settings", repeat=repeat,
        )  # fmt: skip
        rows_per_pass = training.micro_batch_size or FEATURE_ROWS
        if trial.solved:
            solve(state, context.backbone, context.attached, context.features, rows_per_pass)
            if training.train_on_validation and recorded.on_validation is not False:
                solve_on_all(
                    state, context.validation, context.backbone, context.attached, context.features, rows_per_pass
                )
        else:
            if training.head_start == "probe" and begun_with is None:
                begin_at_probe(state, context.backbone, context.attached, context.features, rows_per_pass)
            # the validation rows too: leading frozen layers are computed for the same rows in the same passes as then
            CohortTrainer(context.backbone, context.attached, [state], () if on_all else context.validation).run()
        if averaged_with is not None:
            average_with(adapter, averaged_with, record.class_offsets, context.backbone)
        elif record.class_offsets is not None:
            shift_classes(adapter, context.backbone, record.class_offsets)
        # Clones: removing the adapter below frees what they are.
        return {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    finally:
        context.attached.remove(trial.identifier)


def _compared(
    record: TrialRecord, stored: Mapping[str, Tensor], made: Mapping[str, Tensor], threads: tuple[int, int] | None
) -> Again:
    if differ := sorted(stored.keys() ^ made.keys()):
        raise UserError(
            f"the stored adapter of trial {record.id} has other tensors than the one made now: {differ[:3]}."
        )
    differing, largest, squares, whole = 0, 0.0, 0.0, 0.0
    for name, tensor in stored.items():
        if torch.equal(tensor, made[name]):
            # Equal tensors count in the norm: a share of the whole adapter is what is said.
            whole += float(tensor.double().square().sum())
            continue
        differing += 1
        # In double, or the difference itself would be rounded.
        apart = made[name].double() - tensor.double()
        largest = max(largest, float(apart.abs().max()))
        squares, whole = squares + float(apart.square().sum()), whole + float(tensor.double().square().sum())
    assert record.training is not None
    relative = math.sqrt(squares / whole) if whole else 0.0
    label = f"{record.trial.label}, seed {record.trial.seed}"
    return Again(record.id, label, record.training.steps, differing, len(stored), largest, relative, threads)
