"""Does one cohort: trains it, evaluates it, leaves its records. Every second is booked, every failure recorded.

What is recorded is never done again, and a cohort that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dollartune.budget.deadline_signal import closing_seconds, until
from dollartune.budget.ledger import BudgetSpent, Deadline, Ledger, Share
from dollartune.budget.peak_memory import PeakMemory
from dollartune.budget.study_budget import MEASURES_SHARE
from dollartune.config import StudySettings
from dollartune.engines.adapters import adapter_info, begin_with
from dollartune.engines.base import Cohort, Pruning, RecordSink, TimeLimit, TimeLimits, evaluation_seconds
from dollartune.engines.display import Display
from dollartune.engines.measure_cost import WRITING, measure_trial_cost, probe
from dollartune.engines.pruning import PruningWatch
from dollartune.engines.trial_context import ContextCache, TrialContext
from dollartune.export.directory import save_adapter
from dollartune.methods.base import Method
from dollartune.planner.trial_cost import TrialCost
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.distributed import shard_copies, whole_layers
from dollartune.train.loop import CohortTrainer, Watcher
from dollartune.train.micro_batch import is_out_of_memory
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState
from dollartune.trials.build_record import error_class, failed_record, scored_record
from dollartune.trials.record import AdapterFile, Cost, Memory, Parameters
from dollartune.trials.trial import Trial

log = logging.getLogger("dollartune")


class CohortWorker:
    """Runs cohorts on this machine, one at a time.

    Args:
        settings: the study.
        contexts: where backbones and data come from.
        ledger: where its time is booked: the study's, or one in memory whose limit is the cohort's time_limit.
        sink: where records, adapters and checkpoints go.
        display: who shows progress.
    """

    def __init__(
        self,
        settings: StudySettings,
        contexts: ContextCache,
        ledger: Ledger,
        sink: RecordSink,
        display: Display | None = None,
    ) -> None:
        self.settings, self.contexts, self.ledger, self.sink = settings, contexts, ledger, sink
        self.display = display or Display()
        self.limited = ledger.limit_seconds is not None or ledger.limit_dollars is not None
        self._best_tried: dict[TrialContext, float] = {}

    def run(self, cohort: Cohort, time_limits: TimeLimits, prune: Pruning | None = None) -> None:
        """Trains, evaluates and records a cohort. A failure is recorded with its class; out of memory retries smaller."""
        settings = self.settings.training
        while True:
            try:
                self._train_and_evaluate(cohort, settings, time_limits, prune)
                return
            except Exception as error:
                micro = settings.micro_batch_size or settings.batch_size
                if is_out_of_memory(error) and micro > 1:
                    settings = settings.model_copy(update={"micro_batch_size": (micro + 1) // 2})
                    log.warning("out of memory: trying again with %d rows per pass", settings.micro_batch_size)
                    self.release()
                    continue
                if len(cohort.trials) > 1:
                    self.release()
                    for trial in cohort.trials:
                        if not self.sink.has(trial.identifier):
                            self.run(replace(cohort, trials=(trial,)), time_limits, prune)
                    return
                self._record_failure(cohort.trials[0], error)
                return

    def measure(self, trial: Trial) -> TrialCost:
        """ExtraMetrics what a trial's method costs, on a few training steps and rows; booked as planning for the method."""
        context = self._context(trial)
        doing = self._until(self._account(trial), "while the costs of the method were measured")
        with self.ledger.book("plan", method=trial.variant.group), doing:
            return measure_trial_cost(context, trial, self.settings)

    def release(self) -> None:
        """Forgets backbones and data, to have their memory back."""
        self.contexts.release()

    def checkpoints(self, cohort: Cohort) -> Checkpoints:
        """Checkpoints of a cohort's training."""
        return Checkpoints(self.sink.folder(cohort.name) / "checkpoint")

    # One cohort

    def _train_and_evaluate(
        self, cohort: Cohort, settings: TrainingSettings, time_limits: TimeLimits, prune: Pruning | None
    ) -> None:
        context = self._context(cohort.trials[0])
        account = self._account(cohort.trials[0])
        if self.limited and context.seconds_per_row is None:
            with self.ledger.book("plan"), self._until(account, "while the costs of evaluating were measured"):
                probe(context, cohort.trials[0], self.settings.evaluation)
        time_limit = time_limits(cohort, context)
        pending = [trial for trial in cohort.trials if not self.sink.has(trial.identifier)]
        shares = [Share(t.identifier, t.variant.group) for t in pending]
        states: dict[str, TrialState] = {}
        unpaid = False
        try:
            if cohort.trials[0].trains:
                hard = self._until(account, "in the middle of a step of the tuning")
                with PeakMemory() as peak, self.ledger.book("tune", shares=shares), hard:
                    states = self._train(cohort, context, settings, time_limit, prune)
                peak_bytes = peak.peak_bytes
            else:
                peak_bytes = 0
            for trial in pending:
                if not self.sink.has(trial.identifier):
                    try:
                        self._evaluate(cohort, trial, context, states.get(trial.identifier), peak_bytes, time_limit)
                    except BudgetSpent as error:
                        unpaid = True
                        self._record_failure(trial, error)
        finally:
            for name in [t.identifier for t in cohort.trials if t.identifier in context.attached.adapters]:
                context.attached.remove(name)
        unpaid = unpaid or any(state.progress.stopped == "budget" for state in states.values())
        if not unpaid or cohort.purpose == "try":  # with more money a final trial goes on from here
            self.checkpoints(cohort).clear()

    def _train(
        self,
        cohort: Cohort,
        context: TrialContext,
        settings: TrainingSettings,
        time_limit: TimeLimit,
        prune: Pruning | None,
    ) -> dict[str, TrialState]:
        states = []
        for trial in cohort.trials:
            with whole_layers(context.backbone.model):
                adapter = context.attached.add(trial.identifier, context.methods(trial), trial.seed)
            if self.settings.begin_with is not None:
                begin_with(Path(self.settings.begin_with), adapter, context.backbone)
            shard_copies(adapter)
            states.append(
                TrialState(trial.identifier, adapter, context.train, settings, trial.seed, trial.fraction, trial.steps)
            )
        checkpoints = self.checkpoints(cohort)
        checkpoints.load(states)
        deadline = self._deadline(cohort, context, time_limit, states)
        watcher: Watcher = self.display.watcher(cohort.trials, states, checkpoints, deadline)
        if prune is not None:
            watcher = PruningWatch(watcher, {trial.identifier: trial for trial in cohort.trials}, prune)
        failures: dict[str, Exception] = {
            state.name: FloatingPointError(state.progress.error)  # before the interruption
            for state in states
            if state.progress.stopped == "failed"
        }
        trainer = CohortTrainer(
            context.backbone,
            context.attached,
            states,
            context.validation,
            watcher,
            deadline.expired if deadline is not None else lambda: False,
            lambda state, error: failures.__setitem__(state.name, error),
            deadline.remaining if deadline is not None else lambda: math.inf,
        )
        trainer.run()
        for state in states:
            if state.progress.stopped == "budget" and state.progress.step == 0:
                failures[state.name] = BudgetSpent("the budget was spent before the first training step.")
        for trial in cohort.trials:
            if trial.identifier in failures and not self.sink.has(trial.identifier):
                self._record_failure(trial, failures[trial.identifier])
        return {state.name: state for state in states}

    def _deadline(
        self, cohort: Cohort, context: TrialContext, time_limit: TimeLimit, states: Sequence[TrialState]
    ) -> Deadline | None:
        """The moment at which tuning must end: what evaluation and writing need is kept back."""
        if math.isinf(time_limit.seconds):
            return None
        kept = max(time_limit.seconds * time_limit.reserve, evaluation_seconds(cohort, context, self.settings))
        kept += context.seconds_per_validation + WRITING * sum(state.adapter.count() for state in states)
        return self.ledger.deadline(
            self.ledger.remaining(time_limit.method) - time_limit.seconds + kept, time_limit.method
        )

    def _evaluate(
        self,
        cohort: Cohort,
        trial: Trial,
        context: TrialContext,
        state: TrialState | None,
        peak_bytes: int,
        time_limit: TimeLimit,
    ) -> None:
        """Evaluates and leaves the record: a final trial on the test rows too, a try on the validation rows alone."""
        name = trial.identifier
        adapter = state.adapter if state is not None else None
        methods, size = trial.variant.build(), self.settings.evaluation.batch_size
        test = None
        hard = self._until(self._account(trial), "before the evaluation of the tuned adapter had ended")
        with self.ledger.book("evaluate", trial=name, method=trial.variant.group), hard:
            self.display.evaluating(trial)
            attached = name if adapter else None
            if cohort.purpose == "final":
                free = self.settings.evaluation.free_generation
                test = context.evaluate(attached, methods, context.splits.test, trial.seed, free, size)
                if not math.isfinite(test.score):
                    raise FloatingPointError(
                        f"{context.task.metric} is not a number on these {test.examples} test rows."
                    )
                context.note_test(test.seconds, test.examples)
            rows = context.splits.validation[: self.settings.training.validation_rows]
            validation = context.evaluate(attached, methods, rows, trial.seed, False, size)
            context.note_validation(validation.seconds, validation.examples)
        measured: dict[str, Any] = {"memory": Memory(peak_bytes=peak_bytes), "data": context.data_facts()}
        if adapter is not None and self._worth_keeping(cohort, context, validation.score):
            with self.ledger.book("export", trial=name, method=trial.variant.group):
                folder = self.sink.folder(name) / "adapter"
                scores = test.scores if test is not None else {}
                info = adapter_info(
                    trial,
                    context.task,
                    context.backbone,
                    self.settings,
                    scores,
                    self._cost(trial),
                    self.contexts.places,
                )
                measured["adapter"] = AdapterFile(folder="adapter", bytes=save_adapter(folder, adapter, info))
        measured["parameters"] = Parameters(
            trainable=adapter.count() if adapter else 0,
            total=context.backbone.anatomy.at("model")[0].parameters,
            modules=adapter.modules_edited() if adapter else {},
        )
        progress = state.progress if state is not None else None
        cost = self._cost(trial)
        if test is not None:
            measured |= self._further_measures(cohort, trial, context, attached, methods, time_limit)
        record = scored_record(trial, context.task, validation, test, progress, cost, **measured)
        self.sink.leave(trial, record, () if test is None else test.predictions)

    def _further_measures(
        self,
        cohort: Cohort,
        trial: Trial,
        context: TrialContext,
        adapter: str | None,
        methods: Sequence[Method[Any]],
        time_limit: TimeLimit,
    ) -> dict[str, Any]:
        """Forgetting and the cost of a request, within a tenth of the time_limit. The method pays, not the trial: its cost is
        that of tuning, evaluation and export."""
        left = math.inf
        if not math.isinf(time_limit.seconds):
            left = min(
                MEASURES_SHARE * time_limit.seconds / len(cohort.trials),
                self.ledger.remaining(time_limit.method) - closing_seconds(),
            )
        evaluator = context.evaluator(free_generation=False)
        hard = self._until(self._account(trial), "while forgetting and the cost of a request were measured")
        with self.ledger.book("evaluate", method=trial.variant.group), hard:
            return context.measures.take(
                evaluator, adapter, methods, context.splits.test, trial.seed, left, context.seconds_per_row or 0.0
            )

    def _worth_keeping(self, cohort: Cohort, context: TrialContext, score: float) -> bool:
        """Whether an adapter is written: of finals all, of tries the best so far, to be there if the study is ended."""
        if self.settings.keep_adapters == "none":
            return False
        if cohort.purpose == "final":
            return True
        best = self._best_tried.get(context, -math.inf)
        self._best_tried[context] = max(best, score)
        return score > best

    def _until(self, method: str | None, what: str) -> AbstractContextManager[None]:
        """Ends what runs inside when the money is spent, wherever it is just then."""
        deadline = self.ledger.deadline(closing_seconds(), method) if self.limited else None
        return until(deadline, f"the money was spent {what}. With a larger budget the same command goes on from there.")

    def _account(self, trial: Trial) -> str | None:
        return trial.variant.group if self.ledger.per == "method" else None

    def _context(self, trial: Trial) -> TrialContext:
        """Booked for all: whoever comes first does not pay for the others."""
        with self.ledger.book("load"), self._until(self._account(trial), "while the backbone and the data were loaded"):
            return self.contexts.context(trial)

    def _cost(self, trial: Trial) -> Cost:
        totals = self.ledger.totals()
        seconds = totals.by_trial.get(trial.identifier, 0.0)
        price = self.ledger.price_per_hour
        return Cost(seconds=seconds, dollars=seconds * price / 3600, price_per_hour=price)

    def _record_failure(self, trial: Trial, error: Exception) -> None:
        kind = error_class(error)
        if kind == "error":
            log.debug("%s", "".join(traceback.format_exception(error)))
        message = f"{type(error).__name__}: {error}" if kind == "error" else str(error)
        trace = "".join(traceback.format_exception(error))[-4000:] if kind == "error" else None
        self.sink.leave(trial, failed_record(trial, kind, message, self._cost(trial), trace))
