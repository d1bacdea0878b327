"""`check --full`: every picture is opened, and every trial's edits are put into its backbone, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.attachment.attached import Attached
from dollartune.errors import UserError
from dollartune.methods.registry import with_head
from dollartune.planner.dry_run import bare_backbone
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.custom import task_and_columns

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Task
    from dollartune.trials.trial import Trial


def check_trials(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """Sentences on pictures that cannot be read and on trials that cannot be built; empty where all is well."""
    return [*_pictures(settings, tasks), *_builds(settings, trials, tasks)]


def _pictures(settings: StudySettings, tasks: Sequence[Task]) -> list[str]:
    root = Path(settings.data_root) if settings.data_root else None
    problems: list[str] = []
    for spec, task in zip(settings.tasks, tasks, strict=True):
        entry: dict[str, object] = {"data": spec} if isinstance(spec, str) else spec
        if task.modality != "image" or "data" not in entry or (isinstance(spec, str) and not Path(spec).exists()):
            continue
        try:
            read = task_and_columns(TaskConfig.read(entry), root, full=True)[0]
        except UserError as error:
            problems.append(f"{task.name}: {error.message}")
        else:
            problems += [note for note in read.notes if note not in task.notes]
    return problems


def _builds(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """Trials that differ in scale and seed alone are built once."""
    problems: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for trial in trials:
        key = (trial.task_index, trial.backbone_index, trial.objective, trial.variant)
        if key in seen or not trial.trains:
            continue
        seen.add(key)
        wanted = settings.backbones[trial.backbone_index]
        classes = len(tasks[trial.task_index].labels) if trial.objective == "classification" else 0
        # on the meta device: shapes are checked and no memory is taken
        bare = bare_backbone(wanted.name, trial.objective, torch.float32, "none", classes, wanted.trust_remote_code)
        attached = Attached(bare.model, bare.anatomy)
        try:
            attached.add("checked", with_head(trial.variant.build(), trial.objective))
        except UserError as error:
            problems.append(f"{trial.label}: {error.message}")
        finally:
            attached.detach()
    return problems
