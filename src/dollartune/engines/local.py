"""The engine of this process: one cohort after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dollartune.train.precision import default_device

if TYPE_CHECKING:
    from dollartune.engines.base import Cohort
    from dollartune.engines.cohort_worker import CohortWorker
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.trials.trial import Trial


class LocalEngine:
    """Runs cohorts here, one at a time, with the driver's own ledger.

    Args:
        worker: who does the work.
    """

    slots = 1

    def __init__(self, worker: CohortWorker) -> None:
        self.worker = worker
        self.device = default_device().type

    def run(self, cohorts: Iterable[Cohort]) -> None:
        for cohort in cohorts:
            self.worker.run(cohort)

    def measure(self, trial: Trial) -> TrialCost:
        return self.worker.measure(trial)

    def close(self) -> None:
        self.worker.release()
