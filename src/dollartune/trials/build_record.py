"""Makes the record of a trial of what was measured."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Unpack

from dollartune import metrics
from dollartune.tasks.mixture import MEAN_OVER_TASKS
from dollartune.train.out_of_memory import is_out_of_memory
from dollartune.trials.record import (
    Cost,
    DoneRecord,
    Environment,
    FailedRecord,
    Failure,
    FrozenPrefix,
    Generation,
    Measured,
    PlannedLength,
    TestResult,
    Training,
    TrialFacts,
    TrialRecord,
    ValidationPoint,
    ValidationResult,
)

if TYPE_CHECKING:
    from dollartune.evaluate.evaluation import Evaluation
    from dollartune.tasks.base import Task
    from dollartune.train.progress import Progress
    from dollartune.trials.trial import Trial


def scored_record(
    trial: Trial,
    task: Task,
    validation: ValidationResult,
    test: Evaluation | None,
    progress: Progress | None,
    cost: Cost,
    **measured: Unpack[Measured],
) -> TrialRecord:
    """The record of a trial that ended with a score.

    Args:
        test: None for a setting that a search tried: its validation score alone counts, as test rows choose nothing.
        progress: of the training; None where nothing was trained.
        measured: further sections of the record: parameters, memory, data, adapter, inference, forgetting.
    """
    record = TrialRecord(
        id=trial.identifier,
        trial=TrialFacts.model_validate(trial.to_json()),
        status="tried",
        metric=task.metric,
        labels=task.labels,
        validation=validation,
        training=None if progress is None else _training(progress),
        cost=cost,
        environment=environment(),
        **measured,
    )
    return record if test is None else evaluated_record(record, test, cost)


def validation_result(validation: Evaluation, task: Task, tried: bool) -> ValidationResult:
    """What a record says of an evaluation on the validation rows.

    Args:
        tried: whether it is of a setting that a search tries: only a search compares by the spread, and only search trials keep
            their predictions' spread nowhere else.
    """
    judged = ValidationResult(score=validation.score, examples=validation.examples)
    if not tried:
        return judged
    spread, loss = standard_error(validation, task.metric), log_loss(validation, task)
    return judged.model_copy(update={"standard_error": spread, "log_loss": loss})


def evaluated_record(tried: TrialRecord, test: Evaluation, cost: Cost, **measured: Unpack[Measured]) -> DoneRecord:
    """The record of a search trial whose adapter has been evaluated on test rows: it is a final trial's from now on.

    Args:
        cost: of all that was done for it, the evaluation included.
        measured: sections that changed: the adapter's file.
    """
    # Only what was set: a field's default must not be written into a record of an earlier version.
    facts = {name: getattr(tried, name) for name in tried.model_fields_set}
    return DoneRecord(**{**facts, "status": "done", "test": _test(test), "cost": cost, **measured})


def _test(test: Evaluation) -> TestResult:
    return TestResult(
        score=test.score,
        scores=test.scores,
        breakdown=test.breakdown,
        generation=Generation(scores=test.generation_scores, breakdown=test.generation_breakdown),
        examples=test.examples,
        seconds=test.seconds,
        prompt_tokens=test.prompt_tokens,
    )


def _training(progress: Progress) -> Training:
    return Training(
        steps=progress.step,
        examples=progress.examples,
        tokens=progress.tokens,
        seconds=progress.seconds,
        compile_seconds=progress.compile_seconds,
        # Nothing stopped it: it came to its planned end.
        stopped=progress.stopped or "finished",
        best_validation_loss=progress.best_loss,
        best_epoch=progress.best_epoch,
        best_step=progress.best_step,
        best_seconds=progress.best_seconds,
        plan=tuple(PlannedLength(**asdict(one)) for one in progress.plan),
        average=progress.average,
        rows_share=progress.rows_share,
        on_validation=progress.on_validation,
        begun_with=progress.begun_with,
        frozen_prefix=FrozenPrefix(
            layers=progress.frozen_prefix_layers,
            tokens=progress.frozen_prefix_tokens,
            tokens_computed=progress.frozen_prefix_tokens_computed,
        ),
        history=tuple(ValidationPoint(**asdict(one)) for one in progress.history),
    )


def standard_error(evaluation: Evaluation, metric: str) -> float:
    """Of a score over its examples; of a mean over tasks, the most that a mean could have."""
    rows = evaluation.predictions
    if not rows:
        # No rows, no knowledge: a share is never more uncertain than that.
        return 0.5
    if metric == MEAN_OVER_TASKS:
        return 0.5 / math.sqrt(len(rows))
    measure = metrics.get(metric)
    taken = [row.probabilities if measure.takes == "probabilities" else row.predicted for row in rows]
    return metrics.standard_error(measure, taken, [row.references or row.expected for row in rows])


def log_loss(evaluation: Evaluation, task: Task) -> float | None:
    """Of the classes' probabilities at the best temperature; None where the task's score counts something else than right
    answers, which a log-loss then says nothing of."""
    rows = [row for row in evaluation.predictions if row.probabilities is not None and row.expected in task.labels]
    if task.metric != "accuracy" or not rows:
        return None
    import torch

    from dollartune.train.calibrated_loss import calibrated_losses

    probabilities = torch.tensor([[(row.probabilities or {})[label] for label in task.labels] for row in rows])
    targets = torch.tensor([task.labels.index(row.expected) for row in rows])
    # A probability of 0 is one below the smallest number, not an impossibility that no temperature mends.
    # Four decimals: settings that say the same of every row are equal, whatever the last digits of their sums.
    return round(float(calibrated_losses(probabilities.double().clamp_min(1e-30).log(), targets).mean()), 4)


def failed_record(trial: Trial, kind: str, message: str, cost: Cost, trace: str | None = None) -> FailedRecord:
    """The record of a trial that failed: its class and what it said. The study goes on."""
    return FailedRecord(
        id=trial.identifier,
        trial=TrialFacts.model_validate(trial.to_json()),
        status="failed",
        error=Failure(kind=kind, message=message, traceback=trace),
        cost=cost,
        environment=environment(),
    )


def error_class(error: BaseException) -> str:
    """`out_of_memory`, `not_finite`, `budget`, `limit`, `environment`, `crash`, `bad_input` or `error`."""
    from dollartune.budget.deadline import BudgetSpent
    from dollartune.budget.serving_limits import LimitExceeded
    from dollartune.errors import ProcessLost, UserError

    # First: torch raises it as a RuntimeError, a class that other failures have too.
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, FloatingPointError):
        return "not_finite"
    if isinstance(error, BudgetSpent):
        return "budget"
    if isinstance(error, LimitExceeded):
        return "limit"
    if of_environment(error):
        return "environment"
    if isinstance(error, ProcessLost):
        return "crash"
    return "bad_input" if isinstance(error, UserError) else "error"


NO_ROOM = ("no space left on device", "disk quota exceeded", "cannot allocate memory", "unexpected pos")
"""What libraries say of a full disk or memory where they raise an error of their own; the last is torch's of a cut-off file."""


def of_environment(error: BaseException) -> bool:
    """Whether the machine is at fault and not the setting: a full disk, a file that is gone, a lost connection. Such a trial is
    tried again by the next run, when the cause may be gone."""
    # Causes may form a ring.
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        if isinstance(one, OSError | MemoryError) or any(sign in str(one).lower() for sign in NO_ROOM):
            return True
        seen.add(id(one))
        one = one.__cause__
    return False


@cache
def environment() -> Environment:
    """Versions and machine, stored with every record."""
    from importlib.metadata import version

    import torch

    # `processor()` is empty on many Linux systems; the architecture is better than nothing.
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return Environment(
        versions={name: version(name) for name in ("dollartune", "torch", "transformers")},
        python=platform.python_version(),
        device=device,
        threads=torch.get_num_threads(),
    )
