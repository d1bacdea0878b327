"""A hash of what files hold.

As large weights take a while to read, it is remembered by path, size and time of change, in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path

from dollartune.cache import cache_directory
from dollartune.files import write_atomically

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
