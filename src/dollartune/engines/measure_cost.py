"""Measures what a trial's method costs, on a few training steps and rows: a `Pace`."""

from __future__ import annotations

import time

from dollartune.config import EvaluationSettings, StudySettings
from dollartune.engines.trial_context import Workbench
from dollartune.planner.trial_cost import Pace
from dollartune.train.loop import CohortTrainer
from dollartune.train.trial import TrialState
from dollartune.trials.trial import Trial

WRITING = 16 / 200e6
"""Seconds to write down one trained parameter: four numbers of four bytes in a checkpoint, at 200 MB per second."""


def measured_pace(bench: Workbench, trial: Trial, settings: StudySettings) -> Pace:
    """What a trial's method costs. The bench learns what evaluating takes; the trial leaves nothing attached."""
    if bench.seconds_per_row is None or not trial.trains:  # solved examples in a prompt make it longer
        probe(bench, trial, settings.evaluation)
    rows = min(len(bench.splits.validation), settings.training.validation_rows)
    tried = rows * bench.seconds_per_validation_row
    final = tried + len(bench.splits.test) * (bench.seconds_per_row or 0.0)
    if not trial.trains:
        return Pace(0, 0.0, 0.0, 0.0, tried, final)
    adapter = bench.attached.add("pace", bench.methods(trial), trial.seed)
    try:
        state = TrialState("pace", adapter, bench.train, settings.training, trial.seed)
        trainer = CohortTrainer(bench.backbone, bench.attached, [state], bench.validation[:8])
        with trainer.ready():
            trainer.step([state])  # the first one warms up
            started, steps = time.perf_counter(), state.progress.step
            while not state.done and state.progress.step - steps < 2:
                trainer.step([state])
        made = state.progress.step - steps
        seconds = (time.perf_counter() - started) / made if made else state.progress.seconds
    finally:
        bench.attached.remove("pace")
    validations = state.total_steps / state.batches_per_epoch * settings.training.validations_per_epoch
    writing = WRITING * adapter.count()
    return Pace(state.total_steps, seconds, validations, bench.seconds_per_validation, tried, final + writing)


def probe(bench: Workbench, trial: Trial, settings: EvaluationSettings) -> None:
    """Measures what evaluating a row takes, on a few rows, and notes it at the bench."""
    rows, size = bench.splits.validation[: min(16, settings.batch_size)], settings.batch_size
    methods = trial.variant.build() if not trial.trains else []
    bench.evaluate(None, methods, rows, trial.seed, False, size)  # the first pass warms up
    found = bench.evaluate(None, methods, rows, trial.seed, False, size)
    bench.note_validation(found.seconds, found.examples)
    if settings.free_generation and bench.task.kind == "classification":
        found = bench.evaluate(None, methods, rows, trial.seed, True, size)
    bench.note_test(found.seconds, found.examples)
