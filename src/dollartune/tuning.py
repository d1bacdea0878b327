"""One command for the impatient: a backbone and a task in, a tuned adapter out.

The study behind it is an ordinary one under one budget, whose search is `anytime`: a solved probe first, then the strongest
method, then more settings. The best adapter so far is handed over each time there is a better one, so that a kill leaves it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.limit import parse_budget
from dollartune.defaults import defaults
from dollartune.errors import UserError
from dollartune.files import replace_folder
from dollartune.tasks.registry import load_task
from dollartune.tasks.suggest import suggest_task

if TYPE_CHECKING:
    from dollartune.tasks.base import Task
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store

EVALUATION = {"free_generation": False, "forgetting": False, "inference_cost": False}
"""The one adapter that comes out is judged by its score. Free generation of every test row takes longer than training on a few
thousand rows, and what forgetting and a request cost is asked of a study that compares."""


def task_entry(
    task: str, data_root: Path | None, told: Mapping[str, Any] | None = None
) -> tuple[str | dict[str, Any], Task]:
    """The study's entry for a preset's name or for a data file, whose task is guessed and spelled out.

    Args:
        told: what the user said of a data file's columns and bad rows.

    Raises:
        UserError: columns are named for a preset, which has its own.
    """
    if Path(task).suffix or Path(task).exists():
        return suggest_task(str(Path(task).resolve()) if Path(task).exists() else task, data_root, told)
    if any(value is not None for value in (told or {}).values()):
        raise UserError(f"{task!r} is no data file, so its columns cannot be named.", "See `dollartune tasks show`.")
    return task, load_task(task, data_root)


def tuning_study(
    backbone: str,
    task: str,
    wanted: Sequence[str],
    budget: str,
    out: Path,
    *,
    price: str | None = None,
    rows: int | None = None,
    seeds: int = 3,
    trials: int | None = None,
    data_root: Path | None = None,
    told: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The study that tunes one adapter.

    Args:
        wanted: methods; by default those of `defaults.yaml`, as far as they fit the backbone and the task.
        budget: `60 s`, `$1`.
        rows: training rows; by default all.
        trials: most settings to try per method; by default what the budget pays for.
        told: label and text columns and what a malformed row does, for a data file.

    Returns:
        its settings, and what was guessed.

    Raises:
        UserError: unknown task, method or backbone, or a budget that is none.
    """
    entry, found = task_entry(task, data_root, told)
    chosen = list(wanted) or list(defaults().tune.image if found.modality == "image" else defaults().tune.text)
    parsed = parse_budget(budget, per="study")
    settings = {
        "name": "study",
        # A relative path would work in this folder alone, for the study and for its adapters.
        "backbone": str(Path(backbone).resolve()) if Path(backbone).exists() and "/" in backbone else backbone,
        "task": entry,
        "methods": chosen,
        "scales": ["all" if rows is None else rows],
        "seeds": seeds,
        "search": {"strategy": "anytime", **({} if trials is None else {"trials": trials})},
        "training": {"train_on_validation": True},
        "evaluation": EVALUATION,
        "budget": parsed.model_copy(update={"price": price}),
        "output": str(out),
        **({"data_root": str(data_root)} if data_root is not None else {}),
    }
    return settings, list(found.notes)


def best_adapter(store: Store) -> TrialRecord | None:
    """The record of the best adapter that is there: of the study's own trials, else of the settings that were tried."""

    def rank(record: TrialRecord) -> tuple[bool, float]:
        score = record.validation_score
        return record.status == "done", float("-inf") if score is None else score

    return max(store.with_adapter(), key=rank, default=None)


def hand_over(store: Store, out: Path) -> TrialRecord | None:
    """Puts a copy of the best adapter at `out`; returns its record, or None where there is none.

    From the first time on there is a whole adapter at `out` at every moment: the new folder takes the old one's place at once.
    """
    record = best_adapter(store)
    if record is None:
        return None
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(store.folder(record.id) / "adapter", new)
    replace_folder(new, out)
    return record
