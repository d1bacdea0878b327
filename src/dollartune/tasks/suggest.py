"""What `dollartune init` writes under `task:` for a data file: what was guessed, spelled out to be changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.custom import spelled_out, task_and_columns
from dollartune.tasks.registry import task_names

if TYPE_CHECKING:
    from dollartune.tasks.base import Task

MOST_WORDS = 30  # label words worth spelling out


def suggest_task(
    data: str, data_root: Path | None = None, told: Mapping[str, Any] | None = None
) -> tuple[dict[str, object], Task]:
    """Reads a data file and spells out the task that was guessed from it.

    Args:
        data: a file, folder, zip or hub id, as in `TaskConfig.data`.
        data_root: where relative paths are looked for besides the current folder.
        told: fields of `TaskConfig` that the user gave (label, text, on_bad_row); the rest is guessed.

    Returns:
        a mapping for the study file's `task:` entry, which loads to the same task, and the task with its notes.

    Raises:
        UserError: the data is missing or malformed, or no column can be guessed to be the answer.
    """
    if data in task_names(aliases=True) and not Path(data).exists():
        raise UserError(
            f"{data!r} is a preset, whose columns and prompt are known.",
            hint=f"In a study file: `task: {data}`. To tune on it: dollartune tune {data}",
        )
    given = {key: value for key, value in (told or {}).items() if value is not None}
    asked = TaskConfig.read({"data": data, **given})
    task, columns = task_and_columns(asked, data_root)
    entry: dict[str, object] = {"data": data}
    # What the prompt and the answer below do not say again.
    entry |= {key: value for key, value in given.items() if key not in ("text", "label", "target")}
    if columns.conversation is not None:
        entry["conversation"] = columns.conversation
    elif columns.image is None and task.template is not None:
        entry["prompt"] = task.template.text
    if columns.label is not None:
        entry["label"] = columns.label
        if len(task.label_words) <= MOST_WORDS and columns.image is None:
            entry["label_words"] = dict(task.label_words)
    else:
        if columns.target is not None:
            entry["target"] = columns.target
        entry["max_answer_tokens"] = task.max_answer_tokens
    entry["metric"] = task.metric
    spelled_out(asked, TaskConfig.read(entry), data_root)
    return entry, task
