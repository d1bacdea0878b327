"""Drives a study: which trials there are, in which units they are run, and what is left to do after an interruption.

    plan_trials -> units (one cohort, or one in-context trial) -> engine -> worker: train, evaluate -> record

The driver owns the ledger and the store; where units run is the engine's business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dollartune.budget.ledger import Ledger
from dollartune.config import StudySettings
from dollartune.study.adapters import keep_best
from dollartune.study.allowance import Allowance
from dollartune.study.engines import Engine, Grant, Timed, Unit
from dollartune.study.engines.local import LocalEngine
from dollartune.study.money import ledger_for
from dollartune.study.planning import plan
from dollartune.study.progress import Display
from dollartune.study.store import Store
from dollartune.study.trials import Trial
from dollartune.study.workbench import Workshop, places_for_virtual_tokens
from dollartune.study.worker import Worker
from dollartune.train.checkpoints import Checkpoints


class StudyRunner:
    """Runs all trials of a study that have no record yet.

    Args:
        settings: the study.
        store: where results go.
        display: who shows progress.
        fresh: delete earlier results, once the plan stands.
    """

    def __init__(
        self, settings: StudySettings, store: Store, display: Display | None = None, fresh: bool = False
    ) -> None:
        self.settings, self.store = settings, store
        self.display = display or Display()
        self.trials, self.tasks, self.notes = plan(settings)
        if fresh:
            store.clear()
        self.ledger: Ledger = ledger_for(settings, self.trials, store.ledger)
        self.allowance = Allowance(settings, self.ledger, self.store, self.trials)
        workshop = Workshop(settings, self.tasks, places_for_virtual_tokens(self.trials))
        self.engine: Engine = LocalEngine(self, Worker(settings, workshop, self.ledger, self, self.display))

    def run(self) -> None:
        """Runs what is left. Ctrl-C and kill leave records and checkpoints; the same command goes on from there."""
        for note in self.notes:
            self.display.note(note)
        with self.ledger, self.ledger.book("other"):
            self._forget_unpaid()
            todo = [trial for trial in self.trials if not self.store.has(trial.identifier)]
            with self.display.study(self.trials, todo, self.ledger):
                self.engine.run(self.units(todo))
            self._tidy()
            self.engine.close()

    # What the engine asks of its driver

    def folder(self, trial: str) -> Path:
        return self.store.folder(trial)

    def has(self, trial: str) -> bool:
        return self.store.has(trial)

    def leave(self, trial: Trial, record: Mapping[str, Any], predictions: Iterable[Any] = ()) -> None:
        self.store.write(trial.identifier, record, predictions)
        self.display.recorded(trial, record)
        self._drop_adapters()

    def grant(self, unit: Unit, bench: Timed) -> Grant:
        return self.allowance.grant(unit, bench)

    # Before and after

    def units(self, trials: Sequence[Trial]) -> list[Unit]:
        """Cohorts of at most `cohort_size` trials that can share a pass; the rest alone. The same on every run."""
        size = self.settings.training.cohort_size
        units: list[Unit] = []
        groups: dict[tuple[Any, ...], list[Trial]] = defaultdict(list)
        for trial in self.trials:
            methods = trial.variant.build()
            together = trial.trains and all(m.capabilities.mixed_rows for m in methods) and size > 1
            key = (
                (trial.backbone_index, trial.objective, trial.task_index, trial.scale)
                if together
                else (trial.identifier,)
            )
            groups[key].append(trial)
        for group in groups.values():
            units.extend(Unit(tuple(group[i : i + size])) for i in range(0, len(group), size))
        wanted = {trial.identifier for trial in trials}
        return [unit for unit in units if any(trial.identifier in wanted for trial in unit.trials)]

    def _forget_unpaid(self) -> None:
        """Trials that only lacked money are tried again, if there is some now."""
        for trial in self.trials:
            group = trial.variant.group if self.ledger.per == "method" else None
            if self.store.has(trial.identifier) and self.ledger.remaining(group) > 0:
                record = self.store.read(trial.identifier)
                if record["status"] == "failed" and record["error"]["class"] == "budget":
                    self.store.forget(trial.identifier)

    def _drop_adapters(self) -> None:
        if self.settings.keep_adapters == "best":
            keep_best(self.store, self.trials)

    def _tidy(self) -> None:
        """What a kill between a record and the end of its unit left behind."""
        self._drop_adapters()
        for unit in self.units(self.trials):
            if all(self.store.has(trial.identifier) for trial in unit.trials):
                Checkpoints(self.store.folder(unit.name) / "checkpoint").clear()
