"""Names of tasks and how a study's `task:` entry becomes a `Task`."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, unknown_name

if TYPE_CHECKING:
    from dollartune.tasks.base import Task
    from dollartune.tasks.preset import Preset

BUILT_IN = ("docstrings", "digits")
"""Modules beside this one with a `TASKS` mapping of name -> task, made from what is installed anyway."""


def load_task(spec: str | Mapping[str, Any] | Any, data_root: Path | None = None) -> Task:
    """Makes a task from what a study file says.

    Args:
        spec: a name (`boolq`), a file or folder (`reviews.csv`), a hub id (`owner/name`), a mapping with the fields of
            `TaskConfig`, or a `TaskConfig`.
        data_root: folder with local copies of presets, `<data_root>/<name>/train.jsonl.gz` and so on.

    Raises:
        UserError: unknown name, file, column or label, or a malformed row; the message names the nearest valid one.
    """
    from dollartune.tasks.config import TaskConfig

    if isinstance(spec, os.PathLike):
        spec = os.fspath(spec)
    if isinstance(spec, str):
        # Names before files: a file called `boolq` beside the study must not take a preset's place.
        preset = presets().get(spec)
        if preset is not None:
            return preset.task(data_root)
        ready = ready_made().get(spec)
        if ready is not None:
            return ready()
        if not _looks_like_data(spec):
            raise unknown_name(
                "task",
                spec,
                task_names(aliases=True),
                "See `dollartune tasks ls`; a file needs its ending, as in reviews.csv.",
            )
        spec = TaskConfig(data=spec)
    elif isinstance(spec, Mapping):
        spec = TaskConfig.read(spec)
    elif not isinstance(spec, TaskConfig):
        raise UserError(f"a task is a name, a file or a mapping; got {type(spec).__name__}.")
    if spec.mixture is not None:
        # Imported here: mixtures load tasks by this very function.
        from dollartune.tasks.mixture import make_mixture

        parts, held_out = (tuple(load_task(one, data_root) for one in names) for names in (spec.mixture, spec.held_out))
        return make_mixture(spec, parts, held_out)
    from dollartune.tasks.custom import changed_preset, task_and_columns

    if spec.preset is None:
        return task_and_columns(spec, data_root)[0]
    preset = presets().get(spec.preset)
    if preset is None and spec.preset not in ready_made():
        raise unknown_name("preset", spec.preset, task_names(aliases=True), "See `dollartune tasks ls`.")
    return changed_preset(spec, load_task(spec.preset, data_root), preset.columns if preset is not None else None)


def task_names(aliases: bool = False) -> list[str]:
    """Names of all tasks that need no data file of the user's, in alphabetical order."""
    names = set(presets()) if aliases else {preset.name for preset in presets().values()}
    return sorted(names | set(ready_made()))


def describe_task(name: str) -> dict[str, object]:
    """What `dollartune tasks show` prints, as plain data; reads no rows of a preset.

    Raises:
        UserError: unknown name.
    """
    preset = presets().get(name)
    if preset is None and name not in ready_made():
        raise unknown_name("task", name, task_names(aliases=True), "See `dollartune tasks ls`.")
    task = preset.task() if preset is not None else ready_made()[name]()
    return {
        "name": task.name,
        "aliases": list(preset.aliases) if preset else [],
        "kind": task.kind,
        "modality": task.modality,
        "description": task.description,
        "prompt": task.template.text if task.template else None,
        "extra_prompts": [template.text for template in task.extra_templates],
        "label_words": dict(task.label_words),
        "metric": task.metric,
        "metrics": list(task.metrics),
        "max_answer_tokens": task.max_answer_tokens,
        "source": task.source,
        "leaks": task.leaks,
        "hub": preset.hub.dataset if preset and preset.hub else None,
        "folders": list(dict.fromkeys((preset.name, *preset.folders))) if preset else [],
    }


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """Name or alias -> preset, from every module in `presets/`.

    Raises:
        ValueError: two presets claim one name.
    """
    from dollartune.tasks import presets as package

    by_name: dict[str, Preset] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        preset: Preset = importlib.import_module(module.name).PRESET
        for name in (preset.name, *preset.aliases):
            if name in by_name:
                raise ValueError(f"presets {by_name[name].name} and {preset.name} both claim the name {name!r}")
            by_name[name] = preset
    return by_name


@lru_cache(maxsize=1)
def ready_made() -> dict[str, Callable[[], Task]]:
    """Tasks that modules build in code: our own (`BUILT_IN`) and those of other packages.

    A package offers tasks by the entry point group `dollartune.tasks`; each entry is a callable that returns a `Task`.
    """
    from importlib.metadata import entry_points

    makers: dict[str, Callable[[], Task]] = {}
    for short in BUILT_IN:
        name = f"dollartune.tasks.{short}"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # a missing dependency of that module is its own affair; a missing module is none
                raise
            continue
        makers.update(module.TASKS)
    for entry in entry_points(group="dollartune.tasks"):
        makers[entry.name] = entry.load()
    return makers


def _looks_like_data(spec: str) -> bool:
    """Whether a string is meant as a file, a folder or a hub id rather than as a name."""
    # A misspelt preset should be told as one, not as a file that is not there.
    return "/" in spec or "\\" in spec or "." in spec or Path(spec).exists()
