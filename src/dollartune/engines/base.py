"""Where cohorts of trials are run: in this process, or on other machines.

    driver (study/runner.py)            engine                              worker (engines/cohort_worker.py)
    decides what runs and what it may   hands cohorts to workers,       ->    loads, trains, evaluates one cohort
    cost; owns ledger, store, display   brings back what they found   <-    records, predictions, booked seconds

An engine is a class with `slots`, `run`, `measure` and `close`. In this process a worker books its time straight into the
study's ledger; a worker elsewhere keeps a ledger in memory, and its engine books what that one says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.train.checkpoints import Checkpoints
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial

Purpose = Literal["final", "search", "evaluate"]
"""`final`: trained and evaluated on the test rows; `search`: a setting that a search tries, scored on the validation rows alone;
`evaluate`: the adapter that a search trial left, on the test rows. It is not trained again; its record becomes a final one."""


@dataclass(frozen=True)
class Cohort:
    """Trials that are done together: one cohort, or one trial alone. The grain of resuming."""

    trials: tuple[Trial, ...]
    purpose: Purpose = "final"
    limit_seconds: float = math.inf
    """What the scheduler meant to give it when it asked for it; the time limit it gets is never above that."""
    why: str = ""
    """Why the scheduler wants it run now, in one line for the log; empty where nothing was chosen."""
    test_rows: int | None = None
    """Test rows that are evaluated, the first ones; None: all."""
    validation_rows: int | None = None
    """The same of the validation rows; None: those of the study's settings."""

    @property
    def name(self) -> str:
        return self.trials[0].identifier


@dataclass(frozen=True)
class TimeLimit:
    """What a cohort may spend from now on: tuning, evaluation and export together."""

    seconds: float
    """Infinity without a limit."""
    reserve: float = 0.0
    """Least part of it (0 to 1) that is kept for evaluation and export."""
    method: str | None = None
    """The account that it is taken from; None is the study's."""
    test_rows: int | None = None
    """Test rows that it pays for, the first ones; None: as many as the cohort was asked for."""
    validation_rows: int | None = None
    """The same of the validation rows."""


@dataclass(frozen=True)
class EvaluationCost:
    """What evaluating a cohort costs, as far as that is known before it gets its time limit."""

    test_rows: int
    """That there are."""
    validation_rows: int
    seconds_per_row: float | None
    """What evaluating one test row takes, as last measured."""
    seconds_per_validation_row: float
    """The same for a validation row, where nothing is generated beside the scoring of labels."""

    def at(self, rate: float) -> EvaluationCost:
        """The same where so many of these seconds make one."""
        per_row = None if self.seconds_per_row is None else self.seconds_per_row / rate
        return replace(self, seconds_per_row=per_row, seconds_per_validation_row=self.seconds_per_validation_row / rate)


LEAST_TEST_ROWS = 20
"""Fewer test rows say nothing: the standard error of an accuracy would be above 0.1."""
EVALUATION_MARGIN = 1.25
"""Evaluating cannot be cut short without losing the trial. Rows cost up to a fifth more than those that were measured (a
busy machine, longer texts), so a quarter is reserved on top."""
EVALUATION_SECONDS = 0.25
"""Beside that for each cohort: the record, predictions and the adapter are written."""


def validation_rows(cohort: Cohort, costs: EvaluationCost, settings: StudySettings) -> int:
    """Validation rows that a cohort's trials are scored on."""
    most = settings.training.validation_rows
    return min(costs.validation_rows, most if cohort.validation_rows is None else cohort.validation_rows, most)


SCORED_SHARE = 2.0
"""Times the share of the training rows, so much of the validation rows is scored: all of them beside a sixth of the training rows
would take as long as these, and neither would be paid for."""


def scored_beside(share: float, validation_rows: int) -> int:
    """Validation rows that something is scored on that is solved on a share of the training rows."""
    return min(validation_rows, max(LEAST_TEST_ROWS, round(SCORED_SHARE * share * validation_rows)))


def evaluation_seconds(cohort: Cohort, costs: EvaluationCost, settings: StudySettings) -> float:
    """What must be reserved to evaluate a cohort's trials."""
    seconds = 0.0
    if cohort.purpose != "evaluate":  # whose validation score is known
        seconds += validation_rows(cohort, costs, settings) * costs.seconds_per_validation_row
    if cohort.purpose != "search":
        # Not measured yet means that there is no limit either, and the sum is not looked at.
        rows = costs.test_rows if cohort.test_rows is None else min(cohort.test_rows, costs.test_rows)
        seconds += rows * (costs.seconds_per_row or 0.0)
    return EVALUATION_MARGIN * seconds * len(cohort.trials) + EVALUATION_SECONDS


class Driver(Protocol):
    """What engines and workers may ask of the study that they work for, and where they leave what they found. A worker
    elsewhere asks through one of its own (`engines.ray_worker.RemoteDriver`)."""

    ledger: Ledger
    """Where work is booked."""

    def folder(self, trial: str) -> Path:
        """Where a trial's adapter lies."""

    def checkpoints(self, cohort: str) -> Checkpoints:
        """Those of a cohort of that name."""

    def has(self, trial: str) -> bool:
        """Whether a trial's record has been left here."""

    def read(self, trial: str) -> TrialRecord:
        """The record of a search trial whose adapter is evaluated now."""

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        """Takes a record, of success or of failure, with its predictions."""

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """Asked once a cohort's backbone and data are loaded, and again for each retry.

        Raises:
            BudgetSpent: the money would not even pay for its evaluation.
        """

    def paying(self) -> str:
        """The ledger's innermost booking, which pays for what is made now and stays: who goes on with the study knows it."""

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """Whether a trial should end now, with this validation loss after so many optimizer steps: it will not be the best."""


class Engine(Protocol):
    """Runs cohorts of trials."""

    device: str
    """Kind of device that trains: `cpu` or `cuda`."""

    @property
    def slots(self) -> int:
        """How many cohorts it runs at the same time."""

    def run(self, cohorts: Iterable[Cohort]) -> None:
        """Runs cohorts. When it returns, each trial of them has been left with the driver, and its time is booked."""

    def measure(self, trial: Trial) -> TrialCost:
        """What a trial's method costs here, from a few steps; booked as loading and planning."""

    def close(self) -> None:
        """Lets go of workers and machines."""
