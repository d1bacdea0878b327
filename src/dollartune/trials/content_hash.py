"""What a task's local files hold, in a few characters: edited data under the same name must not find old records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dollartune.fingerprint import fingerprint
from dollartune.tasks.registry import presets

SOURCES = ("data", "validation", "test", "images", "preset", "mixture")
"""Keys of a task's entry whose texts are presets, files or folders."""


def of_task(spec: Any, data_root: Path | None) -> dict[str, str]:
    """Local path, as the study writes it -> fingerprint, of every file and folder that a task is read from."""
    hashes: dict[str, str] = {}
    for text in _sources(spec):
        path = _place(text, data_root)
        if path is not None:
            hashes[text] = fingerprint(path)
    return hashes


def _place(text: str, data_root: Path | None) -> Path | None:
    """Where it lies: a preset under the data root, a file of the user's anywhere."""
    preset = presets().get(text)
    if preset is not None:
        return preset.local_folder(data_root) if data_root is not None else None
    candidates = [Path(text).expanduser(), *([data_root / text] if data_root is not None else [])]
    return next((path for path in candidates if _exists(path)), None)


def _sources(spec: Any, key: str = "data") -> Iterator[str]:
    """Every text in a task's entry that names data."""
    if isinstance(spec, str):
        if key in SOURCES and "\n" not in spec:
            yield spec
    elif isinstance(spec, Mapping):
        for name, value in spec.items():
            yield from _sources(value, str(name))
    elif isinstance(spec, list | tuple):
        for value in spec:
            yield from _sources(value, key)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name: no path
        return False
