"""The engine of this process: one unit after the other."""

from __future__ import annotations

from collections.abc import Iterable

from dollartune.engines.base import Driver, Pruning, Unit
from dollartune.engines.cohort_worker import Worker
from dollartune.planner.trial_cost import Pace
from dollartune.train.precision import default_device
from dollartune.trials.trial import Trial


class LocalEngine:
    """Runs units here, one at a time, with the driver's own ledger.

    Args:
        driver: whom to ask for grants.
        worker: who does the work; it leaves records with the driver.
    """

    slots = 1

    def __init__(self, driver: Driver, worker: Worker) -> None:
        self.driver, self.worker = driver, worker
        self.device = default_device().type

    def run(self, units: Iterable[Unit], prune: Pruning | None = None) -> None:
        for unit in units:
            self.worker.run(unit, self.driver.grant, prune)

    def measure(self, trial: Trial) -> Pace:
        return self.worker.measure(trial)

    def close(self) -> None:
        self.worker.release()
