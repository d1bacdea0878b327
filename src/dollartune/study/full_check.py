"""What `check --full` and `run` look at before anything is paid: pictures, rows as tokens, every trial's edits in its backbone.

No weights are loaded. What was found good is kept in the cache folder by its contents, so that a study that goes on, or is
checked and then run, is not looked at twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.content_hash import of_backbone
from dollartune.errors import UserError
from dollartune.memo import memo
from dollartune.methods.registry import with_head
from dollartune.planner.asked_rows import asked_notes
from dollartune.planner.dry_run import bare_backbone
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.custom import task_and_columns
from dollartune.trials.content_hash import of_task

if TYPE_CHECKING:
    from dollartune.backbones.kind import Objective
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Task
    from dollartune.trials.trial import Trial, Variant

log = logging.getLogger("dollartune")


def full_check(
    settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]
) -> tuple[list[Trial], list[str]]:
    """(the trials that can be built, notes on the others and on the rows).

    Raises:
        UserError: a picture cannot be read, two labels are the same tokens, or no trial can be built.
    """
    # Rows before backbones: a file that cannot be read is said within a second.
    notes = _picture_notes(settings, tasks) + asked_notes(settings, trials, tasks)
    problems = _problems(settings, trials, tasks)
    notes += dict.fromkeys(f"left out: {problem}" for problem in problems.values())
    left = [trial for trial in trials if _case(trial) not in problems]
    if not left:
        raise UserError("nothing is left to run:\n" + "\n".join(notes))
    return left, notes


def _picture_notes(settings: StudySettings, tasks: Sequence[Task]) -> list[str]:
    root = Path(settings.data_root) if settings.data_root else None
    notes: list[str] = []
    for spec, task in zip(settings.tasks, tasks, strict=True):
        entry: dict[str, object] = {"data": spec} if isinstance(spec, str) else spec
        # A preset's pictures were looked at by whoever published them.
        if task.modality != "image" or "data" not in entry or (isinstance(spec, str) and not Path(spec).exists()):
            continue
        kept = memo("checked", version("dollartune"), entry, of_task(spec, root))
        if (of_file := kept.read()) is None:
            of_file = task_and_columns(TaskConfig.read(entry), root, full=True)[0].notes
            kept.write(list(of_file))
        notes += [note for note in of_file if note not in task.notes]
    return notes


_Case = tuple[int, int, "Objective", "Variant"]
"""Trials that differ in scale and seed alone are built once."""


def _case(trial: Trial) -> _Case:
    return trial.task_index, trial.backbone_index, trial.objective, trial.variant


def _problems(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> dict[_Case, str]:
    """Why trials cannot be built, by case; those that can are not in it."""
    by_backbone: dict[tuple[int, int, Objective], dict[Variant, Trial]] = {}
    for trial in trials:
        if trial.trains:
            key = trial.task_index, trial.backbone_index, trial.objective
            by_backbone.setdefault(key, {}).setdefault(trial.variant, trial)
    problems: dict[_Case, str] = {}
    for variants in by_backbone.values():
        first = next(iter(variants.values()))
        contents = of_backbone(first.backbone)
        # With the version: another one may put its edits elsewhere.
        kept = memo("checked", version("dollartune"), contents, first.objective, first.conditions, list(variants))
        # A backbone from the hub may be another one tomorrow.
        if contents is not None and kept.read():
            continue
        unbuilt = _built(settings, list(variants.values()), len(tasks[first.task_index].labels))
        if contents is not None and not unbuilt:
            kept.write(True)
        problems |= {_case(trial): why for trial, why in unbuilt}
    return problems


def _built(settings: StudySettings, trials: Sequence[Trial], classes: int) -> list[tuple[Trial, str]]:
    """Those of these trials of one backbone that cannot be built, and why."""
    objective, wanted = trials[0].objective, settings.backbones[trials[0].backbone_index]
    classes = classes if objective == "classification" else 0
    # on the meta device: shapes are checked and no memory is taken
    bare = bare_backbone(wanted.name, objective, torch.float32, "none", classes, wanted.trust_remote_code)
    attached = Attached(bare.model, bare.anatomy)
    problems: list[tuple[Trial, str]] = []
    for trial in trials:
        try:
            attached.add("checked", with_head(trial.variant.build(), objective))
            attached.remove("checked")
        except UserError as error:
            problems.append((trial, f"{trial.label}: {error.message}"))
        except Exception as error:  # a bug, of which the trial's own record will have the traceback
            log.debug("%s cannot be built: %r", trial.label, error)
    return problems
