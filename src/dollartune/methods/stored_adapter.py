"""What the directory of a stored adapter says of itself, read without building the adapter (`export.directory` does that).

It stands here, beneath `export`, because a method may be made of stored adapters (`adapter_fusion`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.chat import chat_format
from dollartune.errors import UserError, nearest
from dollartune.untrusted_files import read_json

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.tasks.base import Task

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"
# Raised when an older version of this package would misread the file.
FORMAT_VERSION = 1
MOST_METHODS = 64
"""Methods of one adapter; real ones have one to three, and each costs a pass over the backbone's sites."""


def read_info(folder: Path) -> dict[str, Any]:
    """An adapter's config.

    Raises:
        UserError: not an adapter directory, a newer format, or a config that is malformed or asks to run code.
    """
    # Everything below is checked before any of it is used: the directory may come from a stranger.
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(
            path.parent for path in [*folder.glob(f"adapter/{CONFIG}"), *folder.glob(f"trials/*/adapter/{CONFIG}")]
        )
        hint = f"Inside it: {', '.join(map(str, inside[:3]))}" if inside else "dollartune results STUDY"
        why = f"it has no {CONFIG}."
        if (folder / "adapter_config.json").is_file():
            hint, why = f"dollartune import {folder} --out FOLDER", "it is one of the peft library."
        elif folder.is_file():
            why = "it is a file, and an adapter is a folder."
        elif not folder.exists():
            beside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
            why = f"there is no such folder.{nearest(folder.name, beside)}"
        raise UserError(f"{str(folder)!r} is not an adapter: {why}", hint=hint)
    info = read_json(path)
    # A file without the number is read like the first format.
    version = info.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(f"{path} has format {version!r}; this version reads up to {FORMAT_VERSION}.")
    described = info.get("methods")
    if (
        not isinstance(described, list)
        or not described
        or not all(isinstance(item, dict) and "method" in item for item in described)
    ):
        raise UserError(f"{path} names no methods: 'methods' must be a list of settings, each with its 'method'.")
    if len(described) > MOST_METHODS:
        raise UserError(f"{path} names {len(described):,} methods; an adapter has at most {MOST_METHODS}.")
    for key in ("max_length", "reserved_places"):
        value, least = info.get(key), 1 if key == "max_length" else 0
        # `type`, not isinstance: JSON's true would be a 1. 2^31 tokens are more than any backbone has positions for.
        if value is not None and (type(value) is not int or not least <= value < 2**31):
            raise UserError(f"{path} has {key} {str(value)[:40]!r}; it must be a number of tokens from {least} up.")
    seeds = isinstance(info.get("seed", 0), int) and isinstance(info.get("random_weights_seed"), int | None)
    if not seeds or not isinstance(info.get("backbone", ""), str):
        raise UserError(f"{path} is malformed: 'seed' and 'random_weights_seed' must be numbers and 'backbone' a name.")
    return info


def task_facts(task: Task, backbone: Backbone) -> dict[str, object]:
    """What an adapter remembers of its task: also the chat template by which it was asked, so that it is asked so again."""
    chat = chat_format(backbone, task.chat, task.system, task.chat_template)
    return {
        "name": task.name,
        "kind": task.kind,
        "prompt": task.template.text if task.template else None,
        "label_words": dict(task.label_words),
        "metric": task.metric,
        "max_answer_tokens": task.max_answer_tokens,
        "answer_column": task.answer_column,
        "references_column": task.references_column,
        # So that a later hold-out with this column is not scored as if its rows were on their own.
        "group_column": task.group_column,
        **({} if chat is None else {"chat_template": chat.template, "system": chat.system}),
    }
