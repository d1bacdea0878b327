"""Runs a study in one process: units of trials in order, every second booked, every failure recorded, resumable.

    plan_trials -> units (one cohort, or one in-context trial) -> train -> evaluate -> record

A unit is the grain of resuming: what is recorded is never done again, and a unit that was interrupted goes on from its
last checkpoint.
"""

from __future__ import annotations

import logging
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dollartune.attach.adapter import Adapter
from dollartune.attach.attached import Attached
from dollartune.backbones.loading import Backbone, Objective, default_objective, kind_of, load_backbone, read_config
from dollartune.budget.ledger import Deadline, Ledger, Share
from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Evaluation, Evaluator
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.base import Method
from dollartune.methods.registry import build_method
from dollartune.study.money import budget_settings, ledger_for
from dollartune.study.peak import PeakMemory
from dollartune.study.progress import Display
from dollartune.study.records import done_record, error_class, failed_record, is_out_of_memory
from dollartune.study.store import Store
from dollartune.study.trials import Trial, plan_trials
from dollartune.tasks.base import Splits, Task
from dollartune.tasks.registry import load_task
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


def objective_of(trial_methods: Sequence[Method[Any]], preferred: Objective) -> Objective:
    """A trial that tunes the head classifies; all others do what the study prefers."""
    return "classification" if any("head" in method.kinds for method in trial_methods) else preferred


def plan(settings: StudySettings) -> tuple[list[Trial], list[Task], list[str]]:
    """Trials, their tasks, and notes on what was guessed or left out; loads no weights.

    With several backbones, a pair that has no meaning (text on a vision model) is left out with a note; with one it is
    an error.

    Raises:
        UserError: anything in the study that cannot work, before a second is spent on it.
    """
    backbones = settings.backbones()
    root = Path(settings.data_root) if settings.data_root else None
    tasks = [load_task(spec, root) for spec in settings.task_specs()]
    notes = [note for task in tasks for note in task.notes]
    kinds, objectives = [], []
    for wanted in backbones:
        config = read_config(wanted.name, wanted.trust_remote_code)
        kinds.append(kind_of(config))
        objectives.append(default_objective(config) if wanted.objective == "auto" else wanted.objective)
    readable = [
        [b for b, kind in enumerate(kinds) if (kind == "vision") == (task.modality == "image")] for task in tasks
    ]
    for task, fitting in zip(tasks, readable, strict=True):
        if not fitting:
            needed = (
                "a vision backbone (for example tiny-vit)" if task.modality == "image" else "a backbone that reads text"
            )
            raise UserError(f"task {task.name!r} needs {needed}; the study has {', '.join(b.name for b in backbones)}.")
    pairs = [(t, b, objectives[b], len(fitting) > 1) for t, fitting in enumerate(readable) for b in fitting]
    trials = []
    for trial in plan_trials(settings, pairs, [task.name for task in tasks]):
        methods = trial.variant.build()
        trial = replace(trial, objective=objective_of(methods, trial.objective))
        problem = _meaningless(trial, methods, kinds[trial.backbone_index], tasks[trial.task_index])
        if problem is None:
            trials.append(trial)
        elif len(backbones) == 1 and len(tasks) == 1:
            raise UserError(problem)
        else:
            notes.append(f"left out: {problem}")
    return trials, tasks, list(dict.fromkeys(notes))


def _meaningless(trial: Trial, methods: Sequence[Method[Any]], kind: str, task: Task) -> str | None:
    """Why a trial has no meaning, or None."""
    for method in methods:
        if kind not in method.backbone_kinds:
            works = ", ".join(method.backbone_kinds)
            return f"method {method.name!r} has no meaning on {kind} backbones ({trial.backbone}); it works on {works}."
    if trial.objective == "classification" and task.kind != "classification":
        return f"method {trial.variant.label!r} on {trial.backbone!r} scores classes; task {task.name!r} asks for text."
    if trial.objective == "classification" and not trial.trains:
        return f"method {trial.variant.label!r} needs a backbone that writes text; {trial.backbone!r} scores classes."
    return None


class StudyRunner:
    """Runs all trials of a study that have no record yet.

    Args:
        settings: the study.
        store: where results go.
        display: who shows progress.
    """

    def __init__(self, settings: StudySettings, store: Store, display: Display | None = None) -> None:
        self.settings, self.store = settings, store
        self.display = display or Display()
        self.trials, self.tasks, self.notes = plan(settings)
        self.device = default_device()
        self.ledger: Ledger = ledger_for(settings, self.trials, store.ledger)
        self._benches: dict[tuple[Any, ...], Workbench] = {}
        self._backbones: dict[tuple[Any, ...], Backbone] = {}

    def run(self) -> None:
        """Runs what is left. Ctrl-C and kill leave records and checkpoints; the same command goes on from there."""
        todo = [trial for trial in self.trials if not self.store.has(trial.identifier)]
        with self.ledger, self.ledger.book("other"), self.display.study(self.trials, todo, self.ledger):
            for unit in self.units(todo):
                self.run_unit(unit)
                self._prune_adapters()

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
        shares = [Share(t.identifier, t.variant.group) for t in unit.trials]
        with self.ledger.book("load", shares=shares):
            bench = self.bench(unit.trials[0])
        pending = [trial for trial in unit.trials if not self.store.has(trial.identifier)]
        states: dict[str, TrialState] = {}
        try:
            if unit.trials[0].trains:
                with PeakMemory(self.device) as peak, self.ledger.book("tune", shares=shares):
                    states = self._train(unit, bench, settings)
                peak_bytes = peak.bytes
            else:
                peak_bytes = 0
            for trial in pending:
                if not self.store.has(trial.identifier):
                    self._evaluate(trial, bench, states.get(trial.identifier), peak_bytes)
        finally:
            for name in [t.identifier for t in unit.trials if t.identifier in bench.attached.adapters]:
                bench.attached.remove(name)
        Checkpoints(self.store.folder(unit.name) / "checkpoint").clear()

    def _train(self, unit: Unit, bench: Workbench, settings: TrainingSettings) -> dict[str, TrialState]:
        states = []
        for trial in unit.trials:
            adapter = bench.attached.add(trial.identifier, self._methods(trial, bench), trial.seed)
            states.append(TrialState(trial.identifier, adapter, bench.train, settings, trial.seed))
        checkpoints = Checkpoints(self.store.folder(unit.name) / "checkpoint")
        checkpoints.load(states)
        deadline = self._deadline(unit)
        watcher = self.display.watcher(unit.trials, states, checkpoints, deadline)
        failures: dict[str, Exception] = {}
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
        for trial in unit.trials:
            if trial.identifier in failures:
                self._record_failure(trial, failures[trial.identifier])
        return {state.name: state for state in states}

    def _evaluate(self, trial: Trial, bench: Workbench, state: TrialState | None, peak_bytes: int) -> None:
        name = trial.identifier
        adapter = state.adapter if state is not None else None
        with self.ledger.book("evaluate", trial=name, method=trial.variant.group):
            evaluator = Evaluator(
                bench.backbone, bench.attached, bench.task, bench.encoder, bench.splits.train,
                self.settings.evaluation.free_generation, self.settings.evaluation.batch_size,
            )  # fmt: skip
            self.display.evaluating(trial)
            methods = trial.variant.build()
            test = evaluator.evaluate(name if adapter else None, methods, bench.splits.test, trial.seed)
            validation = self._validation_score(trial, bench, adapter, methods)
        extra: dict[str, Any] = {"memory": {"peak_bytes": peak_bytes}, "data": self._data_facts(bench)}
        if adapter is not None and self.settings.keep_adapters != "none":
            with self.ledger.book("export", trial=name, method=trial.variant.group):
                extra["adapter"] = self._save(trial, bench, adapter, test)
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
        evaluator = Evaluator(
            bench.backbone,
            bench.attached,
            bench.task,
            bench.encoder,
            bench.splits.train,
            False,
            self.settings.evaluation.batch_size,
        )
        return evaluator.evaluate(trial.identifier if adapter else None, methods, rows, trial.seed)

    def _save(self, trial: Trial, bench: Workbench, adapter: Adapter, test: Evaluation) -> dict[str, Any]:
        folder = self.store.folder(trial.identifier) / "adapter"
        task = bench.task
        info = {
            "backbone": trial.backbone,
            "revision": bench.backbone.revision,
            "objective": trial.objective,
            "tokenizer": tokenizer_hash(bench.backbone.processor),
            "task": {
                "name": task.name,
                "kind": task.kind,
                "prompt": task.template.text if task.template else None,
                "label_words": dict(task.label_words),
                "metric": task.metric,
                "max_answer_tokens": task.max_answer_tokens,
            },
            "max_length": self.settings.training.max_length,
            "scores": test.scores,
            "cost": self._cost(trial),
            "trial": trial.to_json(),
        }
        return {"folder": "adapter", "bytes": save_adapter(folder, adapter, info)}

    # Shared things

    def bench(self, trial: Trial) -> Workbench:
        """Backbone, data and encodings of a trial, made once."""
        key = (trial.backbone_index, trial.objective, trial.task_index, trial.scale)
        if key not in self._benches:
            task = self.tasks[trial.task_index]
            cap = self.settings.evaluation.rows
            splits = task.splits(trial.scale, self.settings.data_seed, cap)
            backbone = self._backbone(trial, task)
            encoder = Encoder(backbone, self.settings.training.max_length)
            train, validation = encoder.encode(task, splits.train), encoder.encode(task, splits.validation)
            attached = Attached(backbone.model, backbone.anatomy)
            self._benches[key] = Workbench(backbone, attached, task, splits, encoder, train, validation)
        return self._benches[key]

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

    def _deadline(self, unit: Unit) -> Deadline | None:
        """The moment at which this unit's tuning must end, so that every trial of its methods gets the same share."""
        if self.settings.budget is None:
            return None
        groups = {trial.variant.group for trial in unit.trials}
        per_method = self.ledger.per == "method"
        waiting = [
            t for t in self.trials if not self.store.has(t.identifier) and (not per_method or t.variant.group in groups)
        ]
        left = min(self.ledger.remaining(group if per_method else None) for group in groups)
        share = left * len(unit.trials) / max(1, len(waiting))
        reserve = share * self._reserve_share()
        return self.ledger.deadline(left - share + reserve, next(iter(groups)) if per_method else None)

    def _reserve_share(self) -> float:
        budget = budget_settings(self.settings)
        return budget.reserve if budget is not None else 0.0

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
            "shortened": bench.encoder.shortened,
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

    def _prune_adapters(self) -> None:
        """Keeps the adapter with the best validation score of each task and scale, if the study says so."""
        if self.settings.keep_adapters != "best":
            return
        import shutil

        best: dict[tuple[Any, ...], tuple[float, str]] = {}
        found = [(t, self.store.folder(t.identifier) / "adapter") for t in self.trials]
        for trial, folder in found:
            if folder.is_dir() and self.store.has(trial.identifier):
                record = self.store.read(trial.identifier)
                score = (record.get("validation") or {}).get("score")
                key = (trial.backbone_index, trial.task_index, trial.scale)
                best[key] = max(best.get(key, (-1e9, "")), (score if score is not None else -1e9, trial.identifier))
        keep = {name for _, name in best.values()}
        for trial, folder in found:
            if folder.is_dir() and trial.identifier not in keep:
                shutil.rmtree(folder)
