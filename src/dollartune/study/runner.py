"""Drives a study: plans its trials, asks the scheduler what to run, lets the engine run it, tells what it left.

    plan trials -> scheduler.next_cohorts() -> engine.run -> worker: train, evaluate -> record -> scheduler.done(record) -> ...

The runner owns the ledger and the store. What runs next, and for how long, is the scheduler's business; where it runs is
the engine's. It needs no state of its own to go on after a kill: what has a record is told to the scheduler instead of
being run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.budget.journal import held
from dollartune.budget.study_budget import budget_of, grew, ledger_for, memory_of, more_memory
from dollartune.engines.adapters import keep_best
from dollartune.engines.base import EVALUATION_MARGIN, EVALUATION_SECONDS, Cohort, TimeLimit, validation_rows
from dollartune.engines.display import Display
from dollartune.engines.select_engine import cluster_of, engine_for
from dollartune.errors import UserError
from dollartune.schedule.scheduler import seconds_left, time_limit
from dollartune.schedule.search_space import candidates, most_virtual_tokens
from dollartune.schedule.select_scheduler import scheduler_for
from dollartune.study.extend import extension
from dollartune.study.full_check import full_check
from dollartune.study.live_file import asked_extensions, stop_request
from dollartune.study.rows_to_score import RowCounts, RowsToScore, rows_paid_for
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.expand import fitting, plan
from dollartune.trials.record import BudgetFacts, TrialRecord
from dollartune.trials.store import Store

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.engines.base import Engine, EvaluationCost
    from dollartune.schedule.scheduler import Scheduler
    from dollartune.trials.trial import Trial

log = logging.getLogger("dollartune")
BASELINE_SHARE = 0.05
"""Of the money that is left, a baseline may take so much: two or three of them then cost less than what a busy machine does to
a trial, and one that needs more is left out with a word, for the methods are what the money is for."""
BASELINE_SECONDS, SHORT_BASELINE_SHARE = 15.0, 0.1
"""Where that share is less than tf-idf needs on a thousand texts (1 to 3 s, several times that on a busy machine), so many
seconds are allowed, as long as they are no more than this share of what is left."""


class StudyRunner:
    """Runs all trials of a study that have no record yet.

    Args:
        settings: the study.
        store: where results go.
        display: who shows progress.
        fresh: delete earlier results, once the plan stands.
        improved: called when other adapters are kept than before: there is a better one.
        seconds_after: what follows the run and its budget pays for, such as a report.
    """

    def __init__(
        self,
        settings: StudySettings,
        store: Store,
        display: Display | None = None,
        fresh: bool = False,
        improved: Callable[[], object] | None = None,
        seconds_after: float = 0.0,
    ) -> None:
        self.settings, self.store, self.improved = settings, store, improved
        self._with_adapter: set[str] = set()
        self._trouble = ""
        """Why the best adapter could not be handed over, as it was last said."""
        self._set_aside: dict[str, TrialRecord] = {}
        """Records that are no longer the last word. They lie where they are until there is another one: a run that ends before
        that has lost nothing."""
        self.display = display or Display()
        # Before anything is deleted: a study that cannot run must not cost the results of one that could.
        self.trials, self.tasks, self.notes = plan(settings)
        # An anytime search takes its methods by the backbone, and has better uses for the first seconds.
        if settings.search is None or settings.search.strategy != "anytime":
            self.trials, notes = full_check(settings, self.trials, self.tasks)
            self.notes += [note for note in notes if note not in self.notes]
        self.baselines = [trial for trial in self.trials if trial.baseline]
        compared = [trial for trial in self.trials if not trial.baseline]
        self.accounts = list(dict.fromkeys(trial.variant.group for trial in compared))
        cluster = cluster_of(settings)
        price = None if cluster is None else cluster.slot_price
        spaces = (
            candidates(settings.methods, compared, fitting(settings, self.tasks)) if settings.search is not None else []
        )
        spaces = [space for space in spaces if space.group in self.accounts]
        tokens = most_virtual_tokens(self.trials, spaces)

        def prepare(store: Store, path: Path | None) -> None:
            # what is shared (loading, planning) is divided among the methods that are compared, as the money is
            self.ledger: Ledger = ledger_for(settings, compared, path, price)
            try:
                self.ledger.kept_seconds = seconds_after
                self.rows_to_score = RowsToScore(settings, store, self.ledger, compared)
                self.engine: Engine = engine_for(self, settings, self.tasks, tokens, self.display, cluster)
                # Only the engine knows the device, by which `cohort_size: auto` goes.
                together = settings.training.most_together(self.engine.device)
                self.scheduler: Scheduler = scheduler_for(settings, store, self.ledger, compared, spaces, together)
            except BaseException:
                self.ledger.close()  # a notebook keeps the error, and with it the lock
                raise

        if fresh:
            # Once beside the folder: whatever else refuses the study does so now.
            with TemporaryDirectory() as empty:
                prepare(Store(Path(empty)), None)
            with held(store.ledger):
                store.clear()
        prepare(store, store.ledger)

    @property
    def finals(self) -> list[Trial]:
        """The trials that results and reports are about; with a search they are decided on the way."""
        baselines = [t for t in self.baselines if self.scheduler.baselines_due or self.has(t.identifier)]
        return [*baselines, *self.scheduler.finals]

    def run(self, seconds_before: float = 0.0) -> None:
        """Runs what is left. Ctrl-C and kill leave records and checkpoints; the same command goes on from there.

        Args:
            seconds_before: what starting up took; booked as loading.
        """
        for note in self.notes:
            self.display.note(note)
        with self.ledger:
            # A finished study that is asked for again (its report, say) is not charged for starting.
            if self.settings.search is not None or not all(self.has(trial.identifier) for trial in self.trials):
                self.ledger.add("load", seconds_before)
            # The outermost booking: whatever no stage books is in the account too, so that its sum is the wall time.
            with self.ledger.book("other"), closing(self.engine):
                # Not to be had from the records: a method without one bears its part as well.
                self.store.write_accounts(self.accounts)
                # First, since everything after asks which records there are.
                self._set_unpaid_aside()
                todo = [trial for trial in self.finals if not self.has(trial.identifier)]
                with self.display.study(self.finals, todo, self.ledger):
                    # The plan is on disk before anything runs: `status` reads it in another process.
                    self._announce()
                    self._run_baselines()
                    self._measure()
                    while self._run_next():
                        self._run_baselines()
                    self._run_extensions()
                self._tidy()

    def extend(self, trial: Trial) -> None:
        """Runs one trial that goes on where another ended (`study.extend`), and nothing else."""
        with (
            self.ledger,
            self.ledger.book("other"),
            closing(self.engine),
            self.display.study([trial], [trial], self.ledger),
        ):
            self._extend(trial)
            self._drop_adapters()

    # The stages of a study

    def _run_baselines(self) -> None:
        """What the methods are held against: as soon as the scheduler has no better use for those seconds, which is first where
        there is no hurry. Outside of it otherwise, as nothing about them is chosen."""
        if not self.scheduler.baselines_due:
            return
        for trial in self.baselines:
            if self.has(trial.identifier) and self.read(trial.identifier).status == "tried":
                self._begin_again(trial.identifier)  # a search had it as a setting, without test rows
        missing = [Cohort((trial,)) for trial in self.baselines if not self.has(trial.identifier)]
        if missing:
            self._announce()
            self._run_on_engine(missing)

    def _run_extensions(self) -> None:
        """What was asked for on the page of `dollartune view` while the study ran."""
        for identifier, steps in asked_extensions(self.store.root):
            try:
                self._extend(extension(self.store, self.settings, self.trials, identifier, steps))
            except UserError as error:
                self.display.note(error.message)

    def _extend(self, trial: Trial) -> None:
        if self.ledger.limited and seconds_left(self.ledger, self._account_of(trial)) <= 0:
            raise UserError(
                f"nothing is left of the budget to train {trial.label} with.", hint="Give it more: --budget '10 min'"
            )
        if self.has(trial.identifier) and self._goes_on(self.read(trial.identifier)):
            self._begin_again(trial.identifier)
        if not self.has(trial.identifier):
            self._run_on_engine([Cohort((trial,))])
        self.store.plan([*(self.store.planned() or ()), trial.identifier])

    def _account_of(self, trial: Trial) -> str | None:
        """The method that pays for a trial; None is the study."""
        return trial.variant.group if self.ledger.per == "method" else None

    def _measure(self) -> None:
        """Learns what methods cost, as far as the scheduler wants to know it."""
        with self.ledger.book("load"):
            self.scheduler.prepare()
        self._measure_methods()

    def _measure_methods(self) -> None:
        asked: Sequence[Trial] = ()
        # What one measurement says may ask for the next; what is asked for twice has been answered.
        while (trials := self.scheduler.to_measure()) and list(trials) != list(asked):
            asked = trials
            for trial in trials:
                try:
                    cost = self.engine.measure(trial)
                except (
                    Exception
                ) as error:  # whatever it is: the scheduler decides what becomes of the method, and says why
                    self.scheduler.measured(trial, None, str(error))
                else:
                    self.scheduler.measured(trial, self.rows_to_score.of_cost(trial, cost))
                self._say()

    def _run_next(self) -> bool:
        """One round of asking, running and telling; False when the study has come to its end."""
        # An anytime study measures a method when its turn has come.
        self._measure_methods()  # of methods that come into question only now
        # Deciding takes seconds with a sampler, and the method that searches pays for its search.
        with self.ledger.book("other", method=self.scheduler.account):
            asked = self.scheduler.next_cohorts(self.engine.slots)
        self._announce()
        # a scheduler's account may have changed with what it asked for
        with self.ledger.book("other", method=self.scheduler.account):
            cohorts = [cohort for cohort in asked if not self._recorded(cohort)]
            for why in dict.fromkeys(cohort.why for cohort in cohorts if cohort.why):
                log.info(why)
            if cohorts:
                self._run_on_engine(cohorts)
        lost = [t.identifier for cohort in cohorts for t in cohort.trials if not self.has(t.identifier)]
        if lost:  # asking again would run them for ever
            raise RuntimeError(f"the engine left no record of {', '.join(lost)}")
        # Also where all of it had records: telling those may have decided what comes next.
        return bool(asked)

    def _run_on_engine(self, cohorts: Sequence[Cohort]) -> None:
        """Lets the engine run cohorts. What begins anew costs what it takes from now on: a search's try that becomes a final
        trial, a trial that was removed, one that was killed before its first checkpoint."""
        for cohort in cohorts:
            if cohort.purpose == "evaluate":  # what was tuned is added to
                continue
            names = [trial.identifier for trial in cohort.trials]
            if not self.checkpoints(cohort.name).holds(names):
                for name in names:
                    if not self.has(name):
                        self.ledger.begin_attempt(name)
        self.engine.run(cohorts)

    def _announce(self) -> None:
        """Says what was decided, before it is run: a plan on disk, a total that the display counts to."""
        self._say()
        self.store.plan([trial.identifier for trial in self.finals])
        baselines = len(self.finals) - len(self.scheduler.finals)
        self.display.expect(baselines + self.scheduler.expected_finals)
        self._drop_adapters()

    def _say(self) -> None:
        for note in (*self.rows_to_score.new_notes(), *self.scheduler.new_notes()):
            self.display.note(note)

    def _recorded(self, cohort: Cohort) -> bool:
        """Whether all of a cohort has been done before; what has been is told to the scheduler.

        A record of a search trial does not do for a final trial, which must be evaluated on the test rows: it is run
        again, whole; where only its adapter is to be evaluated, the record stays and is added to. A cohort of which
        something is missing is run as it is, as its checkpoint is that of all.
        """
        missing = False
        for trial in cohort.trials:
            if not self.has(trial.identifier):
                missing = True
                continue
            record = self.read(trial.identifier)
            if cohort.purpose == "final" and record.status == "tried":
                # The adapter may not have been kept, and test rows were never seen: there is nothing to add to.
                self._begin_again(trial.identifier)
                missing = True
            elif cohort.purpose == "evaluate" and record.status == "tried":
                missing = True
            else:
                self.scheduler.done(trial, record)
        return not missing

    # What the engine asks of its driver

    def folder(self, trial: str) -> Path:
        return self.store.folder(trial)

    def checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.store.folder(cohort) / "checkpoint")

    def has(self, trial: str) -> bool:
        return trial not in self._set_aside and self.store.has(trial)

    def read(self, trial: str) -> TrialRecord:
        return self.store.read(trial)

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        # With what budget it was made: a later run with more money knows what it may go on with.
        record = record.with_facts(budget=BudgetFacts(**budget_of(self.ledger), memory_bytes=memory_of(self.settings)))
        stop_request(self.store.root, trial.identifier).unlink(missing_ok=True)  # that came too late
        if (earlier := self._still_good(trial, record)) is not None:
            record, predictions = earlier, ()  # which lie where they are
        # The scheduler has not asked for these.
        if trial.baseline or trial.extends is not None:
            self.store.write(trial.identifier, record, predictions)
            self.display.recorded(trial, record)
            return
        if record.status != "tried" and (facts := self.scheduler.facts(trial)) is not None:
            record = record.with_facts(search=facts)
        # The record before the scheduler's state: after a kill in between the record is told again, while a state
        # without its record would have lost a trial.
        self.store.write(trial.identifier, record, predictions)
        self.scheduler.done(trial, record)
        self.display.recorded(trial, record)
        self._drop_adapters()

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        if cohort.trials[0].baseline:
            return self._baseline_limit(cohort, costs)
        cohort = self.rows_to_score.of_cohort(cohort, costs)
        self._say()
        extends = cohort.trials[0].extends is not None
        limit = self._extension_limit(cohort, costs) if extends else self.scheduler.time_limit(cohort, costs)
        rows = cohort.validation_rows if limit.validation_rows is None else limit.validation_rows
        return replace(limit, test_rows=cohort.test_rows, validation_rows=rows)

    def paying(self) -> str:
        return self.ledger.innermost()

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """Whether a trial ends now: the scheduler thinks it hopeless, or somebody asked for its end (`dollartune view`)."""
        request = stop_request(self.store.root, trial.identifier)
        if request.exists():
            request.unlink(missing_ok=True)
            self.display.note(f"{trial.label}, seed {trial.seed}: stopped on request; its best state is evaluated.")
            return True
        return trial.extends is None and self.scheduler.prunes and self.scheduler.prune(trial, step, loss)

    def _baseline_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        if not self.ledger.limited:
            return TimeLimit(math.inf)
        method = self._account_of(cohort.trials[0])
        left = seconds_left(self.ledger, method)
        seconds = max(BASELINE_SHARE * left, min(BASELINE_SECONDS, SHORT_BASELINE_SHARE * left))
        # An untuned model of some size takes minutes for all rows, and of some of them its score is as much of a baseline.
        had = RowCounts(costs.test_rows, validation_rows(cohort, costs, self.settings))
        paid = (seconds - EVALUATION_SECONDS) / EVALUATION_MARGIN
        rows = rows_paid_for(paid, had, costs.seconds_per_row or 0.0, costs.seconds_per_validation_row)
        if rows != had:
            cohort = replace(cohort, test_rows=rows.test, validation_rows=rows.validation)
        limit = time_limit(seconds, cohort, costs, self.settings, method)
        if rows.test < had.test:
            self.display.note(
                f"{cohort.trials[0].label} is scored on the first {rows.test:,} of {had.test:,} test rows: a baseline may take "
                f"{numbers.seconds(seconds)}."
            )
        return replace(limit, test_rows=cohort.test_rows, validation_rows=cohort.validation_rows)

    def _extension_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """All that is left: nothing else waits for it."""
        method = self._account_of(cohort.trials[0])
        seconds = seconds_left(self.ledger, method) if self.ledger.limited else math.inf
        return time_limit(seconds, cohort, costs, self.settings, method) if seconds < math.inf else TimeLimit(math.inf)

    # Before and after

    def _set_unpaid_aside(self) -> None:
        """What the budget ended goes on where there is more money than then, and what a full disk or a lost file ended is tried
        again: their records are no longer the last word."""
        for record in list(self.store.records()):
            # What extends a trial is run where it is asked for, not with the study.
            if record.trial.extends is None and self._goes_on(record):
                self._begin_again(record.id)

    def _goes_on(self, record: TrialRecord) -> bool:
        now, failure = budget_of(self.ledger), record.error if record.status == "failed" else None
        # a record without a budget is from before budgets were recorded: any budget is more than that
        before = record.budget.model_dump() if record.budget is not None else {"per": now["per"], "seconds": 0.0}
        if record.cut_by_budget:
            return grew(before, now)
        if failure is None:
            return False
        if failure.kind == "out_of_memory":
            then = None if record.budget is None else record.budget.memory_bytes
            return more_memory(then, memory_of(self.settings))
        # Of a search's tries the scheduler has been told already; what it decided on is run again.
        own = record.trial.extends is not None or record.id in {trial.identifier for trial in self.finals}
        return own and failure.of_environment

    def _begin_again(self, trial: str) -> None:
        self._set_aside[trial] = self.store.read(trial)

    def _still_good(self, trial: Trial, record: TrialRecord) -> TrialRecord | None:
        """The earlier record of a trial that had a score, where lack of money or the machine kept the new one from having any."""
        earlier, failure = self._set_aside.pop(trial.identifier, None), record.error
        if earlier is None or earlier.status != "done" or failure is None:
            return None
        if failure.kind != "budget" and not failure.of_environment:
            return None
        self.display.note(f"{trial.label}, seed {trial.seed}: its earlier result stays: {failure.message}")
        # Under the budget that was too small as well: still more money has to come before it is tried again.
        return earlier.with_facts(budget=record.budget) if failure.kind == "budget" else earlier

    def _drop_adapters(self) -> None:
        if self.settings.keep_adapters == "best":
            finals = {*(trial.identifier for trial in self.finals), *(self.store.planned() or ())}
            keep_best(self.store, finals, self.scheduler.keeps)
        if self.improved is None:
            return
        kept = {record.id for record in self.store.with_adapter() if record.id not in self._set_aside}
        # A new one among them; adapters that went need no one to hear of it.
        if not kept <= self._with_adapter:
            try:
                with self.ledger.book("export"):
                    self.improved()
            except OSError as error:  # the place for it is full or gone, and the study's own folder has it
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self.display.note(f"the best adapter so far could not be handed over: {error}")
                return
        # After the call, which may fail: the next look then tries again.
        self._with_adapter = kept

    def _tidy(self) -> None:
        """What a kill between a record and the end of its cohort left behind, and what search trials needed to go on."""
        for name, record in self._set_aside.items():
            if record.status == "failed":
                self.store.forget(name)  # nobody has asked for it again
        self._set_aside.clear()
        self._drop_adapters()
        records = list(self.store.records())
        if not any(record.cut_by_budget for record in records):  # else a checkpoint waits for more money
            for record in records:
                self.checkpoints(record.id).clear()
