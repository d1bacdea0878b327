"""The anytime policy on a simulated study: the scheduler that `tune` uses decides, a world answers in place of training.

Nothing of the policy is copied here: cohorts, time limits and pruning are asked of `schedule.anytime`, with a ledger whose
seconds are the world's.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.ledger import Ledger
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, EvaluationCost
from dollartune.schedule.anytime import AnytimeScheduler
from dollartune.schedule.cells import Cell
from dollartune.schedule.search_space import SearchSpace, candidates
from dollartune.study_file import load_study
from dollartune.trials.build_record import failed_record
from dollartune.trials.expand import plan
from dollartune.trials.record import RECORD_VERSION, Cost, TrialRecord, record_of
from dollartune.trials.store import Store
from dollartune.trials.trial import Trial

METHODS = ("full", "lora", "layer_freezing", "bitfit", "ia3", "houlsby", "pfeiffer", "norm")
"""Names that stand for a world's methods; of the first three the scheduler's rule says which is run first."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""That stand for a method's settings; the first is the one that a rule would begin with."""
ROWS, PARAMETERS = 1000, 20_000_000
"""What records say of the data and the backbone."""
LOOKS = 10
"""Validations of a whole training."""
PATIENCE = 1.25
"""A training whose length comes from money ends after so many times the steps that still gained: early stopping."""


@dataclass(frozen=True)
class SimulatedRun:
    """What a simulated training gives.

    Attributes:
        score: on validation rows.
        standard_error: of it.
        loss: (share of the whole training) -> validation loss.
        seconds: of a whole training.
        evaluating: seconds of an evaluation.
    """

    score: Callable[[float], tuple[float, float]]
    loss: Callable[[float], float]
    seconds: float
    evaluating: float


Answer = Callable[[int, int, int], SimulatedRun]
"""(method, setting, seed) -> what training it would give."""


@cache
def _study() -> tuple[StudySettings, Cell, tuple[SearchSpace, ...]]:
    """The study that every world is put to: the same for all, only its money differs."""
    settings = load_study(
        {
            "backbone": "tiny-encoder", "task": "demo_library", "methods": [{name: {"lr": list(RATES)}} for name in METHODS],
            "scales": [ROWS], "seeds": 3, "search": "anytime", "baselines": False, "keep_adapters": "none",
            "evaluation": {"rows": 1000, "free_generation": False, "forgetting": False, "inference_cost": False},
        }
    )  # fmt: skip
    trials = plan(settings, read_rows=False)[0]
    (cell,) = Cell.all(trials)
    return settings, cell, tuple(candidates(settings.methods, trials))


class _Unsaved(AnytimeScheduler):
    """Keeps no state on disk: nothing of a simulation is resumed, and writing it is most of what deciding takes."""

    def _save(self) -> None:
        pass


def handed_over(answer: Answer, money: float, row_seconds: float) -> tuple[int, int, float] | None:
    """(method, setting, share of the whole training) of the adapter that the policy hands over; None where there is none.

    Args:
        answer: the world.
        money: in seconds.
        row_seconds: of evaluating one row.
    """
    settings, cell, spaces = _study()
    costs = EvaluationCost(ROWS, ROWS, row_seconds, row_seconds)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        store, ledger = Store(Path(folder)), Ledger(limit_seconds=money)
        assert settings.search is not None
        scheduler = _Unsaved(settings, store, ledger, cell, spaces, settings.search)
        scheduler.begin(1.0)
        records: dict[str, TrialRecord] = {}
        lengths: dict[str, float] = {}
        while cohorts := scheduler.next_cohorts(1):
            for cohort in cohorts:
                (trial,) = cohort.trials
                try:
                    limit = scheduler.time_limit(cohort, costs).seconds
                except BudgetSpent as error:
                    scheduler.done(trial, failed_record(trial, "budget", str(error), Cost()))
                    continue
                if cohort.purpose == "evaluate":
                    ledger.add("evaluate", (cohort.test_rows or 0) * row_seconds, trial=trial.identifier)
                    # what it scores chooses nothing
                    tested = {**records[trial.identifier].to_json(), "status": "done", "test": {"score": 0.5}}
                    scheduler.done(trial, record_of(tested))
                    continue
                run = answer(*_place(trial, spaces), trial.seed)
                record, lengths[trial.identifier] = _trained(scheduler, cohort, run, limit, settings)
                ledger.add("tune", record.cost.seconds, trial=trial.identifier)
                records[trial.identifier] = record
                scheduler.done(trial, record)
        chosen = [trial for trial in scheduler.finals if trial.identifier in lengths]
        if scheduler.state.final is None or not chosen:
            return None
        method, setting = _place(chosen[0], spaces)
        return method, setting, lengths[chosen[0].identifier]


def _place(trial: Trial, spaces: tuple[SearchSpace, ...]) -> tuple[int, int]:
    """A trial's method and setting as a world numbers them."""
    method = METHODS.index(trial.variant.group)
    space = next(space for space in spaces if space.group == trial.variant.group)
    return method, space.variants.index(trial.variant)


def _trained(
    scheduler: AnytimeScheduler, cohort: Cohort, run: SimulatedRun, limit: float, settings: StudySettings
) -> tuple[TrialRecord, float]:
    """The record of a training, and the share of a whole one that it came to."""
    (trial,) = cohort.trials
    whole = settings.training.steps_for(ROWS)
    each = run.seconds / whole
    possible = math.inf if math.isinf(limit) else max(0, int((limit - run.evaluating) / each))
    wanted = PATIENCE * whole if trial.length == "money" else trial.steps or 1
    steps, stopped, curve = int(max(1, min(possible, wanted))), "finished", []
    for look in range(1, LOOKS + 1):
        step = max(1, round(steps * look / LOOKS))
        loss = run.loss(step / whole)
        curve.append({"epoch": 0.0, "step": step, "seconds": 0.0, "train_loss": 1.0, "validation_loss": loss})
        if scheduler.prunes and look < LOOKS and scheduler.prune(trial, step, loss):
            steps, stopped = step, "pruned"
            break
    score, error = run.score(steps / whole)
    seconds = steps * each + run.evaluating
    values = {
        "version": RECORD_VERSION, "id": trial.identifier, "trial": trial.to_json(), "metric": "accuracy", "status": "tried",
        "validation": {"score": score, "examples": ROWS, "standard_error": error},
        "training": {"stopped": stopped, "best_validation_loss": curve[-1]["validation_loss"], "seconds": steps * each,
                     "steps": steps, "best_step": min(steps, whole), "history": curve},
        "parameters": {"total": PARAMETERS}, "data": {"train": ROWS, "validation": ROWS, "test": ROWS},
        "cost": {"seconds": seconds, "dollars": 0.0, "price_per_hour": 0.0},
    }  # fmt: skip
    return record_of(values), steps / whole
