"""Drives a study: which trials there are, in which cohorts they are run, and what is left to do after an interruption.

    plan_trials -> cohorts (one cohort, or one in-context trial) -> engine -> worker: train, evaluate -> record

With `search:` a scheduler decides what is run: `SearchScheduler` where each method has its own money, `RacingScheduler` where the
study has one sum. The driver owns the ledger and the store; where cohorts run is the engine's business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dollartune.budget.ledger import Ledger
from dollartune.budget.study_budget import budget_of, grew, ledger_for
from dollartune.config import SearchSettings, StudySettings
from dollartune.engines.adapters import keep_best
from dollartune.engines.base import Cohort, Engine, Timed, TimeLimit
from dollartune.engines.display import Display
from dollartune.engines.select_engine import cluster_of, engine_for
from dollartune.schedule.fixed import Allowance
from dollartune.schedule.racing import RacingScheduler
from dollartune.schedule.scheduler import Cell, Scheduler
from dollartune.schedule.search import SearchScheduler
from dollartune.schedule.search_space import candidates
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.expand import plan
from dollartune.trials.record import BudgetFacts, TrialRecord
from dollartune.trials.store import Store
from dollartune.trials.trial import Trial, room_for_virtual_tokens


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
        self.search = settings.search
        cluster = cluster_of(settings)
        if fresh:
            if store.ledger.exists():
                Ledger(path=store.ledger).close()  # refuses where another process is at work on it
            store.clear()
        price = None if cluster is None else cluster.slot_price
        self.ledger: Ledger = ledger_for(settings, self.trials, store.ledger, price)
        self.allowance = Allowance(settings, self.ledger, self.store, self.trials)
        self.scheduler: Scheduler | None = None
        self._more = 0
        self.finals = [] if self.search is not None else self.trials
        """The trials that results and reports are about; with a search they are decided on the way."""
        self.found = candidates(settings.methods, self.trials) if self.search is not None else []
        places = max(
            [
                room_for_virtual_tokens(trial.variant for trial in self.trials),
                *(one.most_tokens() for one in self.found),
            ]
        )
        self.engine: Engine = engine_for(self, settings, self.tasks, places, self.display, cluster)

    def run(self, seconds_before: float = 0.0) -> None:
        """Runs what is left. Ctrl-C and kill leave records and checkpoints; the same command goes on from there.

        Args:
            seconds_before: what starting up took; booked as loading.
        """
        for note in self.notes:
            self.display.note(note)
        with self.ledger:
            if not all(self.store.has(trial.identifier) for trial in self.finals) or self.search is not None:
                self.ledger.add("load", seconds_before)
            with self.ledger.book("other"), closing(self.engine):
                self._forget_unpaid()
                todo = [trial for trial in self.trials if not self.store.has(trial.identifier)]
                with self.display.study(self.trials, todo, self.ledger):
                    if self.search is None:
                        self.engine.run(self.cohorts(todo))
                    elif self.ledger.per == "study" and self.allowance.limited:
                        self._race(self.search)
                    else:
                        self._search(self.search)
                self._tidy()

    # Courses

    def _search(self, search: SearchSettings) -> None:
        """Every method for itself, cell by cell. What all share (loading, measuring) comes first."""
        cells = Cell.all(self.trials)
        courses = [
            SearchScheduler(self, cell, one, search) for cell in cells for one in self.found if one.group in cell.seeds
        ]
        todo = [scheduler for scheduler in courses if not scheduler.finished]
        for scheduler in todo:
            scheduler.measure()
        for scheduler in courses:
            self._more = sum(len(other.seeds) for other in courses[courses.index(scheduler) + 1 :])
            if scheduler in todo:
                waiting = [other for other in todo if not other.finished and other.group == scheduler.group]
                with self.ledger.book("other", method=scheduler.group):
                    scheduler.run(1 / len(waiting))
            self.decided(scheduler.finals)

    def _race(self, search: SearchSettings) -> None:
        """All methods for one sum, cell by cell."""
        with self.ledger.book("load"):
            import optuna.samplers  # noqa: F401 - takes a moment, which should not come when the money is divided
            import scipy.stats.qmc  # noqa: F401

        contests = [RacingScheduler(self, cell, self.found, search) for cell in Cell.all(self.trials)]
        todo = [contest for contest in contests if not contest.finished]
        for contest in todo:
            contest.measure()
        for contest in contests:
            if contest in todo:
                contest.run(1 / sum(not other.finished for other in todo))
            self.decided(contest.finals)

    def decided(self, finals: Sequence[Trial]) -> None:
        """Final trials stand: results and reports are about them."""
        self.finals = list({trial.identifier: trial for trial in (*self.finals, *finals)}.values())
        self.store.plan([trial.identifier for trial in self.finals])
        self.display.expect(len(self.finals) + self._more)
        self._drop_adapters()

    # What the engine asks of its driver

    def folder(self, trial: str) -> Path:
        return self.store.folder(trial)

    def has(self, trial: str) -> bool:
        return self.store.has(trial)

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        record = record.with_facts(budget=BudgetFacts(**budget_of(self.ledger)))
        if self.scheduler is not None and record.status != "tried":
            record = record.with_facts(search=self.scheduler.facts(trial))
        self.store.write(trial.identifier, record, predictions)
        self.display.recorded(trial, record)
        self._drop_adapters()

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        if self.scheduler is not None:
            return self.scheduler.time_limit(cohort, context)
        return self.allowance.time_limit(cohort, context)

    # Before and after

    def cohorts(self, trials: Sequence[Trial]) -> list[Cohort]:
        """Cohorts of at most `cohort_size` trials that can share a pass; the rest alone. The same on every run."""
        size = self.settings.training.most_together(self.engine.device)
        cohorts: list[Cohort] = []
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
            cohorts.extend(Cohort(tuple(group[i : i + size])) for i in range(0, len(group), size))
        wanted = {trial.identifier for trial in trials}
        return [cohort for cohort in cohorts if any(trial.identifier in wanted for trial in cohort.trials)]

    def _forget_unpaid(self) -> None:
        """What the budget ended goes on where there is more money than then: its record is no longer the last word."""
        now = budget_of(self.ledger)
        for record in list(self.store.records()):
            # a record without a budget is from before budgets were recorded: any budget is more than that
            before = record.budget.model_dump() if record.budget is not None else {"per": now["per"], "seconds": 0.0}
            if record.cut_by_budget and grew(before, now):
                self.store.forget(record.id)

    def _drop_adapters(self) -> None:
        if self.settings.keep_adapters == "best":
            keep_best(self.store, {trial.identifier for trial in self.finals})

    def _tidy(self) -> None:
        """What a kill between a record and the end of its cohort left behind, and what tries needed to go on."""
        self._drop_adapters()
        records = list(self.store.records())
        if not any(record.cut_by_budget for record in records):  # else a checkpoint waits for more money
            for record in records:
                Checkpoints(self.store.folder(record.id) / "checkpoint").clear()
