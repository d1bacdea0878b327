"""What local files hold, in a few characters: edited data under the same name must not find old records.

A file's fingerprint is a hash of its contents. As large weights take a while to read, it is remembered by path, size
and time of change, in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from dollartune.backbones.locate import resolve
from dollartune.cache import cache_directory
from dollartune.files import write_atomically
from dollartune.tasks.registry import presets

SOURCES = ("data", "validation", "test", "images", "preset", "mixture")
"""Keys of a task's entry whose texts are presets, files or folders."""
_BLOCK = 1 << 22
"""Bytes that are read at once, and above which a file's hash is remembered by its size and time."""


def fingerprint(path: Path, without: tuple[str, ...] = ()) -> str:
    """Of a file, or of all files in a folder with their names; hidden ones and those with an ending in `without` do not
    count."""
    path = path.expanduser().resolve()
    if path.is_file():
        return _of_file(path)
    # 64 bits tell the files of any user apart; nobody is to be defended against here.
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        # Hidden files (.git, .DS_Store) come and go without the data changing.
        if file.suffix not in without and file.is_file() and not any(part.startswith(".") for part in inside.parts):
            # With its name: two files that change places are other data.
            digest.update(f"{inside.as_posix()} {_of_file(file)}\n".encode())
    return digest.hexdigest()


def of_backbone(name: str) -> str | None:
    """Of a backbone's directory (an embedded one's too); None for one from the hub, which has a revision."""
    path = Path(resolve(name))
    # A model card that is edited changes no weight.
    return fingerprint(path, without=(".md",)) if path.is_dir() else None


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


def _of_file(path: Path) -> str:
    state = path.stat()
    return _hashed(str(path), state.st_size, state.st_mtime_ns)


@cache
def _hashed(path: str, size: int, changed: int) -> str:
    # As `make` does: reading 14 GB of weights to learn that nothing changed would take longer than a trial.
    key = f"{path} {size} {changed}"
    known = _remembered() if size > _BLOCK else {}  # small files are read faster than looked up
    if key in known:
        return known[key]
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    hashed = digest.hexdigest()
    if size > _BLOCK:
        with suppress(OSError):  # a cache that cannot be written costs time only
            # Read again: another process may have added to it while this file was hashed.
            write_atomically(_memory(), json.dumps({**_remembered(), key: hashed}).encode())
    return hashed


def _memory() -> Path:
    return cache_directory() / "fingerprints.json"


def _remembered() -> dict[str, str]:
    try:
        remembered: dict[str, str] = json.loads(_memory().read_text())
    except (OSError, ValueError):
        return {}
    return remembered
