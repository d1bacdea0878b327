"""Measures what a trial's method costs, on a few training steps and rows: a `TrialCost`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dollartune.planner.trial_cost import TrialCost
from dollartune.train.batching import typical_rows
from dollartune.train.cuda_graphs import CudaGraphs
from dollartune.train.loop import CohortTrainer
from dollartune.train.solve import training_seconds
from dollartune.train.trial import TrialState

if TYPE_CHECKING:
    from dollartune.config import EvaluationSettings, StudySettings
    from dollartune.engines.trial_context import TrialContext
    from dollartune.evaluate.evaluation import Evaluation
    from dollartune.trials.trial import Trial

PROBED_ROWS, LEAST_PROBED_ROWS, WARM_UP_ROWS = 16, 4, 2
"""Rows that tell what evaluating one takes."""
PROBE_SECONDS = 2.0
"""About so long may they take: a large backbone with solved examples in its prompts took 16 s for twice sixteen rows, a tenth of
its budget."""
WRITING = 16 / 200e6
"""Seconds to write down one trained parameter: four numbers of four bytes in a checkpoint, at 200 MB per second."""


def measure_trial_cost(context: TrialContext, trial: Trial, settings: StudySettings) -> TrialCost:
    """What a trial's method costs. The context learns what evaluating takes; the trial leaves nothing attached."""
    if context.row_costs.seconds_per_row is None:
        # Before the training steps, whose limit depends on what evaluating takes.
        probe(context, trial, settings.evaluation)
    rows = min(len(context.splits.validation), settings.training.validation_rows)
    tried = rows * context.row_costs.seconds_per_validation_row
    tested, per_row = len(context.splits.test), context.row_costs.seconds_per_row or 0.0
    final = tried + tested * per_row
    if not trial.trains:
        return TrialCost(0, 0.0, 0.0, 0.0, tried, final, tested, per_row, rows)
    adapter = context.attached.add("trial_cost", context.methods(trial), trial.seed)
    try:
        if trial.solved:
            seconds = training_seconds(
                adapter, context.backbone, context.attached, context.features, context.train,
                context.row_costs.seconds_per_validation_row,
            )  # fmt: skip
            return TrialCost(1, seconds, 0.0, 0.0, tried, final + WRITING * adapter.count(), tested, per_row, rows)
        state = TrialState("trial_cost", adapter, context.train, settings.training, trial.seed)
        # The trainer wants some rows; they are not looked at, as no validation falls into three steps.
        trainer = CohortTrainer(context.backbone, context.attached, [state], context.validation[:8])
        # Plain passes: recording one falls into these few steps, and into none of a hundred later ones.
        trainer.forward_backward.cuda_graphs = CudaGraphs(context.backbone.device, None, 0)
        with trainer.ready():
            trainer.fit_passes()
            trainer.train_step([state])  # the first one warms up
            started, steps = time.perf_counter(), state.progress.step
            # Two after the warm-up: more would be paid by the method before it has learnt anything, and search trials
            # correct the measurement later.
            while not state.done and state.progress.step - steps < 2:
                trainer.train_step([state])
        made = state.progress.step - steps
        # A training of one step is over after the warm-up, which then is all there is to go by.
        seconds = (time.perf_counter() - started) / made if made else state.progress.seconds
    finally:
        context.attached.remove("trial_cost")
    # Per epoch, as the setting counts them, times the epochs of the whole training.
    validations = state.total_steps / state.batches_per_epoch * settings.training.validations_per_epoch
    writing = WRITING * adapter.count()
    looking = context.seconds_per_validation
    return TrialCost(state.total_steps, seconds, validations, looking, tried, final + writing, tested, per_row, rows)


def probe(context: TrialContext, trial: Trial, settings: EvaluationSettings) -> None:
    """Measures what evaluating a row takes, on a few rows, and notes it at the context."""
    # One batch at most, of rows about as long as the mean: a second on a processor.
    lengths, size = [row.length for row in context.validation], settings.batch_size
    rows = [context.splits.validation[index] for index in typical_rows(lengths, min(PROBED_ROWS, size))]
    methods = trial.variant.build() if not trial.trains else []

    def asked(count: int) -> Evaluation:
        return context.evaluate(None, methods, rows[:count], trial.seed, False, size)

    asked(WARM_UP_ROWS)  # what is set up and compiled says nothing of a row
    first = asked(WARM_UP_ROWS)
    count = max(LEAST_PROBED_ROWS, int(PROBE_SECONDS * WARM_UP_ROWS / max(first.seconds, 1e-9)))
    if count >= len(rows):  # where a row takes next to nothing, what is compiled for a new shape counts as well
        asked(count)
    # Where two rows take all of these seconds they have said it.
    evaluation = asked(count) if first.seconds < PROBE_SECONDS else first
    context.row_costs.note_validation(evaluation.seconds, evaluation.examples)
    # Of validation rows labels are scored; on test rows texts are generated as well, which takes several times as long.
    if settings.free_generation and context.task.kind == "classification":
        evaluation = context.evaluate(None, methods, rows[:count], trial.seed, True, size)
    context.row_costs.note_test(evaluation.seconds, evaluation.examples)
