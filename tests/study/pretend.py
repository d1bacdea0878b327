"""An engine that pretends: a clock of its own, scores from a formula. Whole studies run in a moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

from dollartune.budget.deadline import BudgetSpent
from dollartune.engines.base import Cohort, EvaluationCost
from dollartune.engines.display import Display
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule import scheduler
from dollartune.study.api import Study
from dollartune.study.runner import StudyRunner
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import RECORD_VERSION, Cost, record_of
from dollartune.trials.trial import Trial

Truth = Callable[[Trial], float]


class Clock:
    """Seconds that pass only when someone says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class PretendEngine:
    """Takes the time that a trial_cost says, and gives the score that a formula says.

    Args:
        slow: how many times longer things take than was measured; of a trial, where it is a function.
        break_after: raises KeyboardInterrupt before this many trials more have been left (a kill).
    """

    slots = 1
    device = "cpu"

    def __init__(
        self,
        driver: Any,
        clock: Clock,
        truth: Truth,
        trial_cost: TrialCost,
        slow: float | Callable[[Trial], float] = 1.0,
        break_after: float = math.inf,
    ) -> None:
        self.driver, self.clock, self.truth, self.trial_cost = driver, clock, truth, trial_cost
        self.slow, self.break_after = slow, break_after
        self.cohorts: list[Cohort] = []

    def measure(self, trial: Trial) -> TrialCost:
        with self.driver.ledger.book("plan", method=trial.variant.group):
            self.clock.now += 1.0
        return (
            self.trial_cost
            if trial.trains
            else TrialCost(0, 0.0, 0.0, 0.0, self.trial_cost.try_seconds, self.trial_cost.final_seconds)
        )

    def run(self, cohorts: Iterable[Cohort]) -> None:
        for cohort in cohorts:
            self.cohorts.append(cohort)
            costs = EvaluationCost(10, 10, self.trial_cost.final_seconds / 25, self.trial_cost.try_seconds / 12.5)
            try:
                time_limit = self.driver.time_limit(cohort, costs)
            except BudgetSpent as error:
                for trial in cohort.trials:
                    self.driver.leave(trial, failed_record(trial, "budget", str(error), Cost()))
                continue
            for trial in cohort.trials:
                self._one(cohort, trial, time_limit.seconds / len(cohort.trials))

    def _one(self, cohort: Cohort, trial: Trial, seconds: float) -> None:
        if self.break_after <= 0:
            raise KeyboardInterrupt
        self.break_after -= 1
        slow = self.slow(trial) if callable(self.slow) else self.slow
        ledger, trial_cost = self.driver.ledger, self.trial_cost.corrected(slow, slow)
        after = trial_cost.final_seconds if cohort.purpose == "final" else trial_cost.try_seconds
        whole = trial.fraction * trial_cost.steps * trial_cost.seconds_per_step if trial.trains else 0.0
        training = min(whole, max(0.0, seconds - 1.3 * after))
        score = self.truth(trial)
        stopped = "finished" if training == whole else "budget"
        if cohort.purpose == "search" and self.driver.prune(trial, 1, 1 - score):
            stopped, training = "pruned", training / 4
        with ledger.book("tune", trial=trial.identifier, method=trial.variant.group):
            self.clock.now += training
        with ledger.book("evaluate", trial=trial.identifier, method=trial.variant.group):
            self.clock.now += after
        record: dict[str, Any] = {
            "id": trial.identifier, "trial": trial.to_json(), "metric": "accuracy", "labels": [],
            "status": "tried" if cohort.purpose == "search" else "done",
            "validation": {"score": score, "examples": 100, "standard_error": 0.01},
            "training": {"stopped": stopped, "best_validation_loss": 1 - score, "seconds": training}
            if trial.trains else None,
            "cost": {"seconds": training + after, "dollars": 0.0, "price_per_hour": 0.0},
        }  # fmt: skip
        test = {"test": {"score": score}} if cohort.purpose == "final" else {}
        self.driver.leave(trial, record_of({"version": RECORD_VERSION, **record, **test}))

    def close(self) -> None:
        pass


TEN_SECONDS = TrialCost(
    steps=100, seconds_per_step=0.1, validations=5, seconds_per_validation=0.0, try_seconds=0.5, final_seconds=1.0
)
"""A whole training of ten seconds."""


class Pretended:
    """A pretended run of a study, and what it left."""

    def __init__(
        self,
        settings: dict[str, Any],
        truth: Truth,
        trial_cost: TrialCost = TEN_SECONDS,
        slow: float | Callable[[Trial], float] = 1.0,
        break_after: float = math.inf,
        at: float = 0.0,
        display: Display | None = None,
        engine: type[PretendEngine] | None = None,
    ) -> None:
        self.study = Study(settings)
        self.notes: list[str] = []
        display = display or Display()
        display.note = self.notes.append  # type: ignore[method-assign]
        self.runner = StudyRunner(self.study.settings, self.study.store, display)
        self.clock = Clock()
        self.clock.now = at
        self.runner.ledger.clock = self.clock
        self.engine = (engine or PretendEngine)(self.runner, self.clock, truth, trial_cost, slow, break_after)
        self.runner.engine = self.engine
        # as `Study.run` does: a folder without its settings would count as one of before 0.2
        self.study.store.create(self.study.settings.model_dump_json(exclude={"output", "engine"}), [])
        self.killed = False
        try:
            with patch.object(scheduler, "closing_seconds", lambda: 0.0):  # its clock is not that of this machine
                self.runner.run()
        except KeyboardInterrupt:
            self.killed = True
            self.runner.ledger.close()

    def labels(self, purpose: str) -> list[str]:
        """Settings in the order in which they were run."""
        return [
            f"{trial.variant.label} seed {trial.seed} {trial.fraction:g}"
            for cohort in self.engine.cohorts if cohort.purpose == purpose
            for trial in cohort.trials
        ]  # fmt: skip

    def seconds(self, method: str | None = None) -> float:
        """What was spent."""
        return self.runner.ledger.spent_seconds(method)


def learning_rate(trial: Trial) -> float:
    """0.9 for the best learning rate, less by how far another is from it, on a logarithmic scale."""
    method = trial.variant.build()[0]
    best = {"lora": 3e-4, "bitfit": 5e-3}.get(method.name, 1e-3)
    far = abs(math.log10(method.config.lr / best)) if method.capabilities.trains else 1.0
    return 0.9 - 0.2 * far - {"lora": 0.0, "bitfit": 0.05}.get(method.name, 0.1)
