"""Runs a study in one process: units of trials in order, every second booked, every failure recorded, resumable.

    plan_trials -> units (one cohort, or one in-context trial) -> train -> evaluate -> record

A unit is the grain of resuming: what is recorded is never done again, and a unit that was interrupted goes on from its
last checkpoint.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dollartune.attach.adapter import Adapter
from dollartune.attach.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone, read_config
from dollartune.budget.ledger import BudgetSpent, Ledger, Share
from dollartune.budget.meters import PeakMemory
from dollartune.config import StudySettings
from dollartune.evaluate.evaluation import Evaluation, Evaluator
from dollartune.export.directory import save_adapter
from dollartune.methods.base import Method
from dollartune.methods.registry import build_method
from dollartune.study.adapters import adapter_info, keep_best
from dollartune.study.allowance import Allowance
from dollartune.study.money import ledger_for
from dollartune.study.planning import plan
from dollartune.study.progress import Display
from dollartune.study.records import done_record, error_class, failed_record, is_out_of_memory
from dollartune.study.store import Store
from dollartune.study.trials import Trial
from dollartune.tasks.base import Splits, Task
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.loop import CohortTrainer
from dollartune.train.precision import choose_dtype, default_device
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

log = logging.getLogger("dollartune")


@dataclass(frozen=True)
class Unit:
    """Trials that are done together: one cohort, or one trial alone."""

    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        return self.trials[0].identifier


@dataclass
class Workbench:
    """What trials of one backbone, objective, task and scale share."""

    backbone: Backbone
    attached: Attached
    task: Task
    splits: Splits
    encoder: Encoder
    train: list[Encoded]
    validation: list[Encoded]
    shortened: int
    """Training and validation inputs that were longer than the backbone or `max_length` allows."""
    seconds_per_row: float | None = None
    """What evaluating one row takes, as last measured."""


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
        self.device = default_device()
        self.ledger: Ledger = ledger_for(settings, self.trials, store.ledger)
        self.allowance = Allowance(settings, self.ledger, self.store, self.trials)
        self._benches: dict[tuple[Any, ...], Workbench] = {}
        self._backbones: dict[tuple[Any, ...], Backbone] = {}

    def run(self) -> None:
        """Runs what is left. Ctrl-C and kill leave records and checkpoints; the same command goes on from there."""
        for note in self.notes:
            self.display.note(note)
        with self.ledger, self.ledger.book("other"):
            self._forget_unpaid()
            todo = [trial for trial in self.trials if not self.store.has(trial.identifier)]
            with self.display.study(self.trials, todo, self.ledger):
                for unit in self.units(todo):
                    self.run_unit(unit)
                    self._drop_adapters()
            self._tidy()

    def _tidy(self) -> None:
        """What a kill between a record and the end of its unit left behind."""
        self._drop_adapters()
        for unit in self.units(self.trials):
            if all(self.store.has(trial.identifier) for trial in unit.trials):
                self._checkpoints(unit).clear()

    def _checkpoints(self, unit: Unit) -> Checkpoints:
        return Checkpoints(self.store.folder(unit.name) / "checkpoint")

    def _drop_adapters(self) -> None:
        if self.settings.keep_adapters == "best":
            keep_best(self.store, self.trials)

    def _forget_unpaid(self) -> None:
        """Trials that only lacked money are tried again, if there is some now."""
        for trial in self.trials:
            group = trial.variant.group if self.ledger.per == "method" else None
            if self.store.has(trial.identifier) and self.ledger.remaining(group) > 0:
                record = self.store.read(trial.identifier)
                if record["status"] == "failed" and record["error"]["class"] == "budget":
                    self.store.forget(trial.identifier)

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

    # One unit

    def run_unit(self, unit: Unit) -> None:
        """Trains, evaluates and records a unit. A failure is recorded with its class; out of memory retries smaller."""
        settings = self.settings.training
        while True:
            try:
                self._train_and_evaluate(unit, settings)
                return
            except Exception as error:
                micro = settings.micro_batch_size or settings.batch_size
                if is_out_of_memory(error) and micro > 1:
                    settings = settings.model_copy(update={"micro_batch_size": (micro + 1) // 2})
                    log.warning("out of memory: trying again with %d rows per pass", settings.micro_batch_size)
                    self._release()
                    continue
                if len(unit.trials) > 1:
                    self._release()
                    for trial in unit.trials:
                        if not self.store.has(trial.identifier):
                            self.run_unit(Unit((trial,)))
                    return
                self._record_failure(unit.trials[0], error)
                return

    def _train_and_evaluate(self, unit: Unit, settings: TrainingSettings) -> None:
        with self.ledger.book("load"):  # for all: whoever comes first does not pay for the others
            bench = self.bench(unit.trials[0])
        if self.allowance.limited:
            if bench.seconds_per_row is None:
                with self.ledger.book("plan"):
                    self._probe(unit.trials[0], bench)
            self.allowance.check(unit.trials, bench)
        pending = [trial for trial in unit.trials if not self.store.has(trial.identifier)]
        shares = [Share(t.identifier, t.variant.group) for t in pending]
        states: dict[str, TrialState] = {}
        try:
            if unit.trials[0].trains:
                with PeakMemory() as peak, self.ledger.book("tune", shares=shares):
                    states = self._train(unit, bench, settings)
                peak_bytes = peak.peak_bytes
            else:
                peak_bytes = 0
            for trial in pending:
                if not self.store.has(trial.identifier):
                    self._evaluate(trial, bench, states.get(trial.identifier), peak_bytes)
        finally:
            for name in [t.identifier for t in unit.trials if t.identifier in bench.attached.adapters]:
                bench.attached.remove(name)
        self._checkpoints(unit).clear()

    def _train(self, unit: Unit, bench: Workbench, settings: TrainingSettings) -> dict[str, TrialState]:
        states = []
        for trial in unit.trials:
            adapter = bench.attached.add(trial.identifier, self._methods(trial, bench), trial.seed)
            states.append(TrialState(trial.identifier, adapter, bench.train, settings, trial.seed))
        checkpoints = self._checkpoints(unit)
        checkpoints.load(states)
        deadline = self.allowance.deadline(unit.trials, bench)
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
            if trial.identifier in failures and not self.store.has(trial.identifier):
                self._record_failure(trial, failures[trial.identifier])
        return {state.name: state for state in states}

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
        extra: dict[str, Any] = {"memory": {"peak_bytes": peak_bytes}, "data": self._data_facts(bench)}
        if adapter is not None and self.settings.keep_adapters != "none":
            with self.ledger.book("export", trial=name, method=trial.variant.group):
                folder = self.store.folder(name) / "adapter"
                info = adapter_info(
                    trial,
                    bench.task,
                    bench.backbone,
                    self.settings,
                    test.scores,
                    self._cost(trial),
                    self._places_for_virtual_tokens(),
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
        self.store.write(name, record, test.predictions)
        self.display.recorded(trial, record)

    def _validation_score(
        self, trial: Trial, bench: Workbench, adapter: Adapter | None, methods: Sequence[Method[Any]]
    ) -> Evaluation:
        """Score on validation rows, by which settings and adapters are chosen; the test rows choose nothing."""
        rows = bench.splits.validation[: self.settings.training.validation_rows]
        evaluator = self._evaluator(bench, False)
        return evaluator.evaluate(trial.identifier if adapter else None, methods, rows, trial.seed)

    # Shared things

    def bench(self, trial: Trial) -> Workbench:
        """Backbone, data and encodings of a trial, made once."""
        key = (trial.backbone_index, trial.objective, trial.task_index, trial.scale)
        if key not in self._benches:
            task = self.tasks[trial.task_index]
            cap = self.settings.evaluation.rows
            splits = task.splits(trial.scale, self.settings.data_seed, cap)
            backbone = self._backbone(trial, task)
            encoder = Encoder(backbone, self.settings.training.max_length, self._places_for_virtual_tokens())
            train, validation = encoder.encode(task, splits.train), encoder.encode(task, splits.validation)
            attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
            shortened = encoder.shortened
            self._benches[key] = Workbench(backbone, attached, task, splits, encoder, train, validation, shortened)
        return self._benches[key]

    def _places_for_virtual_tokens(self) -> int:
        """Places that the study's prompts and prefixes take: left free for every method, so that all see the same inputs."""
        built = [trial.variant.build() for trial in self.trials]
        return max(sum(int(getattr(method.config, "tokens", 0)) for method in methods) for methods in built)

    def _backbone(self, trial: Trial, task: Task) -> Backbone:
        labels = task.labels if trial.objective == "classification" else ()
        key = (trial.backbone_index, trial.objective, labels)
        if key not in self._backbones:
            wanted = self.settings.backbones()[trial.backbone_index]
            config = read_config(wanted.name, wanted.trust_remote_code)
            width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
            dtype = choose_dtype(self.settings.training, width, self.device)
            self._backbones[key] = load_backbone(
                wanted.name, trial.objective, labels, dtype, self.device, wanted.quantize,
                wanted.trust_remote_code, wanted.random_weights_seed,
            )  # fmt: skip
        return self._backbones[key]

    def _methods(self, trial: Trial, bench: Workbench) -> list[Method[Any]]:
        """The trial's methods; a classification trial also tunes the head, unless it does so already or tunes all."""
        methods = [method.resolve(bench.backbone.processor) for method in trial.variant.build()]
        if trial.objective == "classification" and not any({"head", "model"} & set(m.kinds) for m in methods):
            methods.append(build_method("head"))
        return methods

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

    def _cost(self, trial: Trial) -> dict[str, Any]:
        totals = self.ledger.totals()
        seconds = totals.by_trial.get(trial.identifier, 0.0)
        return {
            "seconds": seconds,
            "dollars": seconds * self.ledger.price_per_hour / 3600,
            "price_per_hour": self.ledger.price_per_hour,
        }

    @staticmethod
    def _data_facts(bench: Workbench) -> dict[str, Any]:
        return {
            "train": len(bench.splits.train),
            "validation": len(bench.splits.validation),
            "test": len(bench.splits.test),
            "shortened": bench.shortened,
        }

    def _record_failure(self, trial: Trial, error: Exception) -> None:
        kind = error_class(error)
        if kind == "error":
            log.debug("%s", "".join(traceback.format_exception(error)))
        message = f"{type(error).__name__}: {error}" if kind == "error" else str(error)
        record = failed_record(trial, kind, message, self._cost(trial))
        record["error"]["traceback"] = "".join(traceback.format_exception(error))[-4000:] if kind == "error" else None
        self.store.write(trial.identifier, record)
        self.display.recorded(trial, record)

    def _release(self) -> None:
        self._benches.clear()
        self._backbones.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
