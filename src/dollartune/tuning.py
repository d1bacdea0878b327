"""One command for the impatient: a backbone and a task in, a tuned adapter out.

The study behind it is an ordinary one: `search: true` under one budget, for the method that was named, or as a race of
those that `advise` recommends for this many examples.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.advise import advise
from dollartune.backbones.kind import default_objective
from dollartune.backbones.loading import anatomy_of, empty_model, read_config
from dollartune.budget.limit import parse_budget
from dollartune.defaults import defaults
from dollartune.errors import UserError
from dollartune.methods.registry import build_method, methods
from dollartune.tasks.registry import load_task
from dollartune.tasks.suggest import suggest_task

if TYPE_CHECKING:
    from dollartune.tasks.base import Task
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store

RACERS = 3
"""Recommended methods that race where none is named."""


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


def advised(backbone: str, task: Task) -> list[str]:
    """The methods that `advise` recommends for so many examples and that this backbone can be tuned with, best first."""
    kind = task.kind if task.modality == "text" else "image_classification"
    found = advise(len(task.load()["train"]), kind)
    config = read_config(backbone)
    anatomy = anatomy_of(empty_model(backbone, default_objective(config)))
    chosen: list[str] = []
    for one in sorted(found.ranking, key=lambda one: not one.recommended):
        name = one.method
        if name not in methods() or name in chosen or not methods()[name].capabilities.trains:
            continue
        try:
            method = build_method(name)
            method.check(anatomy)
            method.sites(anatomy)
        except UserError:
            continue
        chosen.append(name)
    return chosen[:RACERS] or list(defaults().tune)


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
        wanted: methods; by default those that are recommended.
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
    chosen = list(wanted) or advised(backbone, found)
    parsed = parse_budget(budget, per="study" if len(chosen) > 1 else "method")
    notes = list(found.notes)
    if not wanted:
        notes.append(f"no method is named: {', '.join(chosen)} race, as `dollartune advise` recommends them.")
    settings = {
        "name": "study",
        # A relative path would work in this folder alone, for the study and for its adapters.
        "backbone": str(Path(backbone).resolve()) if Path(backbone).exists() and "/" in backbone else backbone,
        "task": entry,
        "methods": chosen,
        "scales": ["all" if rows is None else rows],
        "seeds": seeds,
        "search": True if trials is None else trials,
        "budget": parsed.model_copy(update={"price": price}),
        "output": str(out),
        **({"data_root": str(data_root)} if data_root is not None else {}),
    }
    return settings, notes


def best_adapter(store: Store) -> TrialRecord | None:
    """The record of the best adapter that is there: of the study's own trials, else of the settings that were tried."""

    def rank(record: TrialRecord) -> tuple[bool, float]:
        score = record.validation_score
        return record.status == "done", float("-inf") if score is None else score

    return max(store.with_adapter(), key=rank, default=None)


def hand_over(store: Store, out: Path) -> TrialRecord | None:
    """Puts a copy of the best adapter at `out`; returns its record, or None where there is none."""
    record = best_adapter(store)
    if record is None:
        return None
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(store.folder(record.id) / "adapter", new)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return record
