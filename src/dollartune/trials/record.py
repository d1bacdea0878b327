"""What is written down about a trial."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping
from functools import cache
from typing import Any

from dollartune import metrics
from dollartune.evaluate.evaluation import Evaluation
from dollartune.tasks.base import Task
from dollartune.tasks.mixture import MEAN_OVER_TASKS
from dollartune.train.micro_batch import is_out_of_memory
from dollartune.train.trial import Progress
from dollartune.trials.trial import Trial


def scored_record(
    trial: Trial,
    task: Task,
    validation: Evaluation,
    test: Evaluation | None,
    progress: Progress | None,
    cost: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a trial that ended with a score.

    Derived figures (score per parameter, per second, per dollar) are not stored; `results` computes them.

    Args:
        test: None for a setting that a search tried: its validation score alone counts, as test rows choose nothing.
        progress: of the training; None where nothing was trained.
    """
    record: dict[str, Any] = {
        "id": trial.identifier,
        "trial": trial.to_json(),
        "status": "tried" if test is None else "done",
        "metric": task.metric,
        "labels": list(task.labels),
        "validation": {"score": validation.score, "examples": validation.examples},
        "training": None if progress is None else _training(progress),
        "cost": dict(cost),
        "environment": environment(),
    }
    if test is None:
        record["validation"]["standard_error"] = standard_error(validation, task.metric)
        return {**record, **extra}
    return {
        **record,
        "score": test.score,
        "scores": test.scores,
        "breakdown": test.breakdown,
        "generation": {"scores": test.generation_scores, "breakdown": test.generation_breakdown},
        "test": {"examples": test.examples, "seconds": test.seconds, "prompt_tokens": test.prompt_tokens},
        **extra,
    }


def _training(progress: Progress) -> dict[str, Any]:
    return {
        "steps": progress.step,
        "examples": progress.examples,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "compile_seconds": progress.compile_seconds,
        "stopped": progress.stopped or "finished",
        "best_validation_loss": progress.best_loss,
        "best_epoch": progress.best_epoch,
        "best_step": progress.best_step,
        "best_seconds": progress.best_seconds,
        "trunk": {
            "layers": progress.trunk_layers,
            "tokens": progress.trunk_tokens,
            "tokens_computed": progress.trunk_tokens_computed,
        },
        "history": progress.to_json()["history"],
    }


def standard_error(evaluation: Evaluation, metric: str) -> float:
    """Of a score over its examples; for scores that are no mean over examples, the most that a mean could have."""
    rows = evaluation.predictions
    if not rows:
        return 0.5
    found = metrics.get(metric) if metric != MEAN_OVER_TASKS else None
    values = None
    if found is not None and found.takes != "probabilities":
        values = found.per_example([row.predicted for row in rows], [row.references or row.expected for row in rows])
    if values is None or len(values) < 2:
        return 0.5 / math.sqrt(len(rows))
    spread = statistics.stdev(values) or 0.5 / math.sqrt(len(rows))  # all right or all wrong: still not certain
    return spread / math.sqrt(len(values))


def failed_record(trial: Trial, kind: str, message: str, cost: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a trial that failed: its class and what it said. The study goes on."""
    return {
        "id": trial.identifier,
        "trial": trial.to_json(),
        "status": "failed",
        "error": {"class": kind, "message": message},
        "cost": dict(cost),
        "environment": environment(),
    }


def is_cut(record: Mapping[str, Any]) -> bool:
    """Whether the budget ended a final trial, so that more money could make more of it."""
    if record["status"] == "failed":
        return bool(record["error"]["class"] == "budget")
    return record["status"] == "done" and (record["training"] or {}).get("stopped") == "budget"


def error_class(error: BaseException) -> str:
    """`out_of_memory`, `not_finite`, `budget`, `bad_input` or `error`."""
    from dollartune.budget.ledger import BudgetSpent
    from dollartune.errors import UserError

    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, FloatingPointError):
        return "not_finite"
    if isinstance(error, BudgetSpent):
        return "budget"
    return "bad_input" if isinstance(error, UserError) else "error"


@cache
def environment() -> dict[str, Any]:
    """Versions and machine, stored with every record."""
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": {name: version(name) for name in ("dollartune", "torch", "transformers")},
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
