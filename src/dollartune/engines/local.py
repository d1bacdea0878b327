"""The engine of this process: one cohort after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dollartune.train.precision import default_device

if TYPE_CHECKING:
    from dollartune.engines.base import Cohort, Driver, Pruning
    from dollartune.engines.cohort_worker import CohortWorker
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.trials.trial import Trial


class LocalEngine:
    """Runs cohorts here, one at a time, with the driver's own ledger.

    Args:
        driver: whom to ask for time limits.
        worker: who does the work; it leaves records with the driver.
    """

    slots = 1

    def __init__(self, driver: Driver, worker: CohortWorker) -> None:
        self.driver, self.worker = driver, worker
        self.device = default_device().type

    def run(self, cohorts: Iterable[Cohort], prune: Pruning | None = None) -> None:
        for cohort in cohorts:
            self.worker.run(cohort, self.driver.time_limit, prune)

    def measure(self, trial: Trial) -> TrialCost:
        return self.worker.measure(trial)

    def close(self) -> None:
        self.worker.release()
