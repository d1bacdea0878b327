"""What a task says about itself (description, source, leaks, prompt) and the inputs of its test rows, where they are
at hand without a download."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.report.contents import Board, Contents
    from dollartune.tasks.base import Task

LONGEST_INPUT = 700
"""Characters of an input that are shown; of longer ones the middle is left out."""


@dataclass(frozen=True)
class TaskFacts:
    """One task of the study."""

    name: str
    description: str = ""
    source: str = ""
    leaks: str = ""
    prompt: str = ""
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Example id -> prompt, of the test rows."""
    pictures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Example id -> what reads its `PIL.Image`, in an image task."""


def task_facts(contents: Contents, with_inputs: bool = True) -> dict[str, TaskFacts]:
    """Facts by task name. A task whose data is gone or lies on a hub is left out, or comes without inputs."""
    settings = contents.settings
    if settings is None:
        return {}
    root = Path(settings.data_root) if settings.data_root else None
    facts = {}
    for spec in settings.tasks:
        # A report must neither wait for a network nor fail without one.
        if not at_hand(spec, root, rows=False):
            continue
        try:
            task = _load(spec, root)
            board = next((board for board in contents.boards if board.task == task.name), None)
            inputs, pictures = {}, {}
            if with_inputs and board is not None and at_hand(spec, root, rows=True):
                inputs = _inputs(task, board, settings.data_seed, settings.evaluation.rows)
                pictures = _pictures(task)
        except (UserError, OSError):
            continue  # the data has moved since the study ran: the report does without
        prompt = task.template.text if task.template is not None else ""
        facts[task.name] = TaskFacts(
            task.name, task.description, task.source, task.leaks, prompt, task.notes, inputs, pictures
        )
    return facts


def _load(spec: Any, root: Path | None) -> Task:
    from dollartune.tasks.registry import load_task

    return load_task(spec, root)


def at_hand(spec: str | Mapping[str, Any], root: Path | None, rows: bool) -> bool:
    """Whether the task (or its rows) can be had without asking a hub."""
    from dollartune.tasks.registry import presets, ready_made

    if not isinstance(spec, str):
        name = spec.get("preset") or spec.get("data")
        return isinstance(name, str) and at_hand(name, root, rows)
    if spec in ready_made():
        return True
    if spec in presets():
        return not rows or (root is not None and presets()[spec].local_folder(root) is not None)
    return Path(spec).exists() or (root is not None and (root / spec).exists())


def _inputs(task: Task, board: Board, seed: int, cap: int) -> dict[str, str]:
    if task.template is None:
        return {}
    return {example.id: shortened(task.prompt(example)) for example in task.splits(board.scale, seed, cap).test}


def _pictures(task: Task) -> dict[str, Callable[[], Any]]:
    if task.modality != "image":
        return {}
    return {
        example.id: example.fields["image"] for example in task.load()["test"] if callable(example.fields.get("image"))
    }


def picture_data(read: Callable[[], Any]) -> str:
    """A picture as a data URI, small enough for a page: a hundred pixels across tell what it shows."""
    image = read().convert("RGB")
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


PICTURE_PIXELS = 112
"""Of the longer side of a picture in a report."""


def shortened(text: str, longest: int = LONGEST_INPUT) -> str:
    """A text with its middle left out where it is long."""
    if len(text) <= longest:
        return text
    # Both ends: a prompt's instruction stands at its beginning or at its end.
    half = longest // 2
    return f"{text[:half].rstrip()} […] {text[-half:].lstrip()}"
