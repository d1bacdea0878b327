"""What is written down about a trial."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

from dollartune.evaluate.evaluation import Evaluation
from dollartune.study.trials import Trial
from dollartune.train.trial import Progress


def done_record(
    trial: Trial,
    test: Evaluation,
    validation: Evaluation | None,
    progress: Progress | None,
    parameters: Mapping[str, Any],
    cost: Mapping[str, Any],
    metric: str,
    labels: tuple[str, ...],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a trial that ended with a score.

    Derived figures (score per parameter, per second, per dollar) are not stored; `results` computes them.
    """
    training = None
    if progress is not None:
        training = {
            "steps": progress.step,
            "examples": progress.examples,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "stopped": progress.stopped or "finished",
            "best_validation_loss": progress.best_loss,
            "best_epoch": progress.best_epoch,
            "best_step": progress.best_step,
            "best_seconds": progress.best_seconds,
            "history": progress.to_json()["history"],
        }
    return {
        "id": trial.identifier,
        "trial": trial.to_json(),
        "status": "done",
        "metric": metric,
        "labels": list(labels),
        "score": test.score,
        "scores": test.scores,
        "breakdown": test.breakdown,
        "generation": {"scores": test.generation_scores, "breakdown": test.generation_breakdown},
        "test": {"examples": test.examples, "seconds": test.seconds, "prompt_tokens": test.prompt_tokens},
        "validation": None if validation is None else {"score": validation.score, "examples": validation.examples},
        "training": training,
        "parameters": dict(parameters),
        "cost": dict(cost),
        "environment": environment(),
        **extra,
    }


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the host."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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
