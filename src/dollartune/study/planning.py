"""From settings to trials: what is run, what is left out and why. Loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dollartune.backbones.loading import Objective, default_objective, kind_of, read_config
from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.methods.base import Method
from dollartune.study.trials import Trial, plan_trials
from dollartune.tasks.base import Task
from dollartune.tasks.registry import load_task


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
