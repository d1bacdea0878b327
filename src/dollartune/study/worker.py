"""Does one unit: trains it, evaluates it, leaves its records. Every second is booked, every failure recorded.

What is recorded is never done again, and a unit that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Sequence
from typing import Any

from dollartune.attach.adapter import Adapter
from dollartune.budget.ledger import BudgetSpent, Deadline, Ledger, Share
from dollartune.budget.meters import PeakMemory
from dollartune.config import StudySettings
from dollartune.evaluate.evaluation import Evaluation, Evaluator
from dollartune.export.directory import save_adapter
from dollartune.methods.base import Method
from dollartune.methods.registry import build_method
from dollartune.study.adapters import adapter_info
from dollartune.study.allowance import evaluation_seconds
from dollartune.study.engines import Desk, Grant, Granting, Pruning, Unit
from dollartune.study.progress import Display
from dollartune.study.records import done_record, error_class, failed_record, is_out_of_memory
from dollartune.study.trials import Trial
from dollartune.study.workbench import Workbench, Workshop
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

log = logging.getLogger("dollartune")


class Worker:
    """Runs units on this machine, one at a time.

    Args:
        settings: the study.
        workshop: where backbones and data come from.
        ledger: where its time is booked: the study's, or one in memory whose limit is the unit's grant.
        desk: where records, adapters and checkpoints go.
        display: who shows progress.
    """

    def __init__(
        self, settings: StudySettings, workshop: Workshop, ledger: Ledger, desk: Desk, display: Display | None = None
    ) -> None:
        self.settings, self.workshop, self.ledger, self.desk = settings, workshop, ledger, desk
        self.display = display or Display()

    def run(self, unit: Unit, granting: Granting, prune: Pruning | None = None) -> None:
        """Trains, evaluates and records a unit. A failure is recorded with its class; out of memory retries smaller."""
        settings = self.settings.training
        while True:
            try:
                self._train_and_evaluate(unit, settings, granting, prune)
                return
            except Exception as error:
                micro = settings.micro_batch_size or settings.batch_size
                if is_out_of_memory(error) and micro > 1:
                    settings = settings.model_copy(update={"micro_batch_size": (micro + 1) // 2})
                    log.warning("out of memory: trying again with %d rows per pass", settings.micro_batch_size)
                    self.release()
                    continue
                if len(unit.trials) > 1:
                    self.release()
                    for trial in unit.trials:
                        if not self.desk.has(trial.identifier):
                            self.run(Unit((trial,), unit.purpose), granting, prune)
                    return
                self._record_failure(unit.trials[0], error)
                return

    def release(self) -> None:
        """Forgets backbones and data, to have their memory back."""
        self.workshop.release()

    def checkpoints(self, unit: Unit) -> Checkpoints:
        """Checkpoints of a unit's training."""
        return Checkpoints(self.desk.folder(unit.name) / "checkpoint")

    # One unit

    def _train_and_evaluate(
        self, unit: Unit, settings: TrainingSettings, granting: Granting, prune: Pruning | None
    ) -> None:
        with self.ledger.book("load"):  # for all: whoever comes first does not pay for the others
            bench = self.workshop.bench(unit.trials[0])
        limited = self.ledger.limit_seconds is not None or self.ledger.limit_dollars is not None
        if limited and bench.seconds_per_row is None:
            with self.ledger.book("plan"):
                self._probe(unit.trials[0], bench)
        grant = granting(unit, bench)
        pending = [trial for trial in unit.trials if not self.desk.has(trial.identifier)]
        shares = [Share(t.identifier, t.variant.group) for t in pending]
        states: dict[str, TrialState] = {}
        try:
            if unit.trials[0].trains:
                with PeakMemory() as peak, self.ledger.book("tune", shares=shares):
                    states = self._train(unit, bench, settings, grant)
                peak_bytes = peak.peak_bytes
            else:
                peak_bytes = 0
            for trial in pending:
                if not self.desk.has(trial.identifier):
                    self._evaluate(trial, bench, states.get(trial.identifier), peak_bytes)
        finally:
            for name in [t.identifier for t in unit.trials if t.identifier in bench.attached.adapters]:
                bench.attached.remove(name)
        self.checkpoints(unit).clear()

    def _train(self, unit: Unit, bench: Workbench, settings: TrainingSettings, grant: Grant) -> dict[str, TrialState]:
        states = []
        for trial in unit.trials:
            adapter = bench.attached.add(trial.identifier, self._methods(trial, bench), trial.seed)
            states.append(TrialState(trial.identifier, adapter, bench.train, settings, trial.seed))
        checkpoints = self.checkpoints(unit)
        checkpoints.load(states)
        deadline = self._deadline(unit, bench, grant)
        watcher = self.display.watcher(unit.trials, states, checkpoints, deadline)
        failures: dict[str, Exception] = {
            state.name: FloatingPointError(state.progress.error)  # before the interruption
            for state in states
            if state.progress.stopped == "failed"
        }
        trainer = CohortTrainer(
            bench.backbone,
            bench.attached,
            states,
            bench.validation,
            watcher,
            deadline.expired if deadline is not None else lambda: False,
            lambda state, error: failures.__setitem__(state.name, error),
        )
        trainer.run()
        for state in states:
            if state.progress.stopped == "budget" and state.progress.step == 0:
                failures[state.name] = BudgetSpent("the budget was spent before the first training step.")
        for trial in unit.trials:
            if trial.identifier in failures and not self.desk.has(trial.identifier):
                self._record_failure(trial, failures[trial.identifier])
        return {state.name: state for state in states}

    def _deadline(self, unit: Unit, bench: Workbench, grant: Grant) -> Deadline | None:
        """The moment at which tuning must end: what evaluation and export need is kept back."""
        if math.isinf(grant.seconds):
            return None
        kept = max(grant.seconds * grant.reserve, evaluation_seconds(unit, bench, self.settings))
        return self.ledger.deadline(self.ledger.remaining(grant.method) - grant.seconds + kept, grant.method)

    def _evaluate(self, trial: Trial, bench: Workbench, state: TrialState | None, peak_bytes: int) -> None:
        name = trial.identifier
        adapter = state.adapter if state is not None else None
        with self.ledger.book("evaluate", trial=name, method=trial.variant.group):
            evaluator = self._evaluator(bench, self.settings.evaluation.free_generation)
            self.display.evaluating(trial)
            methods = trial.variant.build()
            test = evaluator.evaluate(name if adapter else None, methods, bench.splits.test, trial.seed)
            if not math.isfinite(test.score):
                raise FloatingPointError(f"{bench.task.metric} is not a number on these {test.examples} test rows.")
            bench.seconds_per_row = max(test.seconds / max(1, test.examples), 0.8 * (bench.seconds_per_row or 0.0))
            validation = self._validation_score(trial, bench, adapter, methods)
        extra: dict[str, Any] = {"memory": {"peak_bytes": peak_bytes}, "data": bench.data_facts()}
        if adapter is not None and self.settings.keep_adapters != "none":
            with self.ledger.book("export", trial=name, method=trial.variant.group):
                folder = self.desk.folder(name) / "adapter"
                info = adapter_info(
                    trial,
                    bench.task,
                    bench.backbone,
                    self.settings,
                    test.scores,
                    self._cost(trial),
                    self.workshop.places,
                )
                extra["adapter"] = {"folder": "adapter", "bytes": save_adapter(folder, adapter, info)}
        parameters = {
            "trainable": adapter.count() if adapter else 0,
            "total": bench.backbone.anatomy.at("model")[0].parameters,
            "modules": adapter.modules_edited() if adapter else {},
        }
        progress = state.progress if state is not None else None
        record = done_record(
            trial,
            test,
            validation,
            progress,
            parameters,
            self._cost(trial),
            bench.task.metric,
            bench.task.labels,
            extra,
        )
        self.desk.leave(trial, record, test.predictions)

    def _validation_score(
        self, trial: Trial, bench: Workbench, adapter: Adapter | None, methods: Sequence[Method[Any]]
    ) -> Evaluation:
        """Score on validation rows, by which settings and adapters are chosen; the test rows choose nothing."""
        rows = bench.splits.validation[: self.settings.training.validation_rows]
        evaluator = self._evaluator(bench, False)
        return evaluator.evaluate(trial.identifier if adapter else None, methods, rows, trial.seed)

    def _probe(self, trial: Trial, bench: Workbench) -> None:
        """Measures what evaluating a row takes, on a few rows."""
        evaluator = self._evaluator(bench, self.settings.evaluation.free_generation)
        rows = bench.splits.validation[: min(16, self.settings.evaluation.batch_size)]
        for _ in range(2):  # the first pass warms up
            found = evaluator.evaluate(None, trial.variant.build() if not trial.trains else [], rows, trial.seed)
        bench.seconds_per_row = found.seconds / max(1, len(rows))

    def _evaluator(self, bench: Workbench, free_generation: bool) -> Evaluator:
        return Evaluator(
            bench.backbone,
            bench.attached,
            bench.task,
            bench.encoder,
            bench.splits.train,
            free_generation,
            self.settings.evaluation.batch_size,
        )

    def _methods(self, trial: Trial, bench: Workbench) -> list[Method[Any]]:
        """The trial's methods; a classification trial also tunes the head, unless it does so already or tunes all."""
        methods = [method.resolve(bench.backbone.processor) for method in trial.variant.build()]
        if trial.objective == "classification" and not any({"head", "model"} & set(m.kinds) for m in methods):
            methods.append(build_method("head"))
        return methods

    def _cost(self, trial: Trial) -> dict[str, Any]:
        totals = self.ledger.totals()
        seconds = totals.by_trial.get(trial.identifier, 0.0)
        return {
            "seconds": seconds,
            "dollars": seconds * self.ledger.price_per_hour / 3600,
            "price_per_hour": self.ledger.price_per_hour,
        }

    def _record_failure(self, trial: Trial, error: Exception) -> None:
        kind = error_class(error)
        if kind == "error":
            log.debug("%s", "".join(traceback.format_exception(error)))
        message = f"{type(error).__name__}: {error}" if kind == "error" else str(error)
        record = failed_record(trial, kind, message, self._cost(trial))
        record["error"]["traceback"] = "".join(traceback.format_exception(error))[-4000:] if kind == "error" else None
        self.desk.leave(trial, record)
