"""From settings to trials: what is run, what is left out and why. Loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dollartune.backbones.anatomy import Anatomy
from dollartune.backbones.device_map import refuse_training
from dollartune.backbones.loading import (
    Objective,
    anatomy_of,
    default_objective,
    empty_model,
    kind_of,
    read_shape,
)
from dollartune.backbones.locate import source_notes
from dollartune.config import BackboneSettings, StudySettings
from dollartune.errors import UserError, unknown_name
from dollartune.methods.base import Method
from dollartune.tasks.base import Task
from dollartune.tasks.registry import load_task
from dollartune.trials.trial import Trial, Variant, plan_trials


def objective_of(trial_methods: Sequence[Method[Any]], preferred: Objective) -> Objective:
    """A trial that tunes the head classifies; all others do what the study prefers."""
    return "classification" if any("head" in method.kinds for method in trial_methods) else preferred


def plan(settings: StudySettings, read_rows: bool = True) -> tuple[list[Trial], list[Task], list[str]]:
    """Trials, their tasks, and notes on what was guessed or left out; loads no weights.

    `read_rows`: also look whether the data has as many rows as the study asks for; without it, no preset's data is read.

    With several backbones, a pair that has no meaning (text on a vision model) is left out with a note; with one it is
    an error.

    Raises:
        UserError: anything in the study that cannot work, before a second is spent on it.
    """
    backbones = settings.backbones
    root = Path(settings.data_root) if settings.data_root else None
    tasks = [load_task(spec, root) for spec in settings.tasks]
    notes = [note for task in tasks for note in task.notes]
    notes += [note for wanted in backbones for note in source_notes(wanted.name)]
    kinds, objectives = [], []
    for wanted in backbones:
        config = read_shape(wanted.name, wanted.trust_remote_code)
        kinds.append(kind_of(config))
        objectives.append(default_objective(config) if wanted.objective == "auto" else wanted.objective)
    _known_tasks(backbones, tasks)
    readable = [
        [
            b
            for b, (kind, wanted) in enumerate(zip(kinds, backbones, strict=True))
            if (kind == "vision") == (task.modality == "image") and (wanted.tasks is None or task.name in wanted.tasks)
        ]
        for task in tasks
    ]
    for task, fitting in zip(tasks, readable, strict=True):
        if not fitting:
            needed = (
                "a vision backbone (for example tiny-vit)" if task.modality == "image" else "a backbone that reads text"
            )
            raise UserError(f"task {task.name!r} needs {needed}; the study has {', '.join(b.name for b in backbones)}.")
    pairs = [(t, b, objectives[b], len(fitting) > 1) for t, fitting in enumerate(readable) for b in fitting]
    trials = []
    places = _Places(settings)
    for trial in plan_trials(settings, pairs, [task.name for task in tasks]):
        methods = trial.variant.build()
        if trial.trains and backbones[trial.backbone_index].device_map is not None:
            raise refuse_training(f"method {trial.variant.label!r} trains on {trial.backbone!r}")
        trial = replace(trial, objective=objective_of(methods, trial.objective))
        problem = _meaningless(trial, methods, kinds[trial.backbone_index], tasks[trial.task_index])
        problem = problem or places.problem(trial, methods) or places.unchanged(trial, methods)
        if problem is None:
            trials.append(trial)
        elif len(backbones) == 1 and len(tasks) == 1 and trial.variant.ablation is None:
            raise UserError(problem)
        else:
            notes.append(f"left out: {problem}")
    if not trials:
        raise UserError("nothing is left to run:\n" + "\n".join(dict.fromkeys(notes)))
    short = _too_few_rows(settings, tasks) if read_rows else []
    return trials, tasks, list(dict.fromkeys([*notes, *short]))


def _known_tasks(backbones: Sequence[BackboneSettings], tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for backbone in backbones:
        for name in backbone.tasks or ():
            if name not in names:
                raise unknown_name(f"task of backbone {backbone.name!r}", name, names)


class _Places:
    """Looks for the places that methods name, on a backbone without weights."""

    def __init__(self, settings: StudySettings) -> None:
        self.backbones = settings.backbones
        self._anatomies: dict[tuple[int, Objective], Anatomy] = {}
        self._found: dict[tuple[int, Objective, Variant], str | None] = {}
        self._whole: dict[str, Sequence[Method[Any]]] = {}
        """Methods by label, which come before their ablations."""

    def problem(self, trial: Trial, methods: Sequence[Method[Any]]) -> str | None:
        """Why a trial's methods have no place on its backbone (a misspelt role, layers that it lacks), or None."""
        key = trial.backbone_index, trial.objective, trial.variant
        if key not in self._found:
            self._found[key] = self._search(trial, methods)
        return self._found[key]

    def unchanged(self, trial: Trial, methods: Sequence[Method[Any]]) -> str | None:
        """Why an ablation is none: it leaves the method at all places that it had."""
        if trial.variant.ablation is None:
            self._whole[trial.variant.label] = methods
            return None
        whole = self._whole.get(trial.variant.ablation[0], ())
        found = [[method.sites(self._anatomy(trial)) for method in some] for some in (methods, whole)]
        return None if found[0] != found[1] else f"{trial.variant.label}: changes nothing, the method is not there."

    def _search(self, trial: Trial, methods: Sequence[Method[Any]]) -> str | None:
        for method in methods:
            if method.capabilities.trains:
                try:
                    method.check(self._anatomy(trial))
                    method.sites(self._anatomy(trial))
                except UserError as error:
                    return f"{trial.variant.label}: {error.message}"
        return None

    def _anatomy(self, trial: Trial) -> Anatomy:
        key = trial.backbone_index, trial.objective
        if key not in self._anatomies:
            wanted = self.backbones[trial.backbone_index]
            self._anatomies[key] = anatomy_of(empty_model(wanted.name, trial.objective, wanted.trust_remote_code))
        return self._anatomies[key]


def _too_few_rows(settings: StudySettings, tasks: Sequence[Task]) -> list[str]:
    """A sentence on every scale that a task has not enough training rows for."""
    asked = [scale for scale in settings.scales if scale is not None]
    notes = []
    for task in tasks if asked else []:
        have = len(task.load()["train"])
        short = sorted(scale for scale in asked if scale > have)
        if not have:
            raise UserError(f"task {task.name!r} has no training rows.")
        if short:
            which = ", ".join(f"{scale:,}" for scale in short)
            notes.append(f"{task.name} has only {have:,} training rows: scale {which} trains on all of them.")
    return notes


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
