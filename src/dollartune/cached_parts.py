"""What lies in the cache folder: listed, measured, deleted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from dollartune.cache import cache_directory
from dollartune.errors import unknown_name
from dollartune.files import folder_bytes

PARTS = {
    "calibration": "measured speed of this machine, for `plan`",
    "unpacked": "backbones unpacked from GGUF files",
    "asked_rows": "rows that are cut and labels that are hard to tell apart, found by `check`",
    "checked": "data sets and methods that `check --full` found good",
    "outlines": "which modules of a backbone methods can change, so that `check` needs no model",
    "dry_runs": "operations of one training step, for `plan`",
    "fingerprints.json": "hashes of weights, which name trials",
    "docstrings-*.json": "the demo's tasks, made of the installed documentation",
    "charts-*.js": "the library of charts, for `view`",
    "study-*.schema.json": "the schema of study files, for editors",
}
"""Names in the cache folder -> what they hold. Only these are listed and deleted: DOLLARTUNE_CACHE may name a folder that holds
other things too."""


@dataclass(frozen=True)
class CachedPart:
    """One entry of the cache folder."""

    name: str
    size_bytes: int
    files: int
    what: str


def cached_parts() -> list[CachedPart]:
    """What the cache holds, the largest first."""
    folder = cache_directory()
    parts = []
    # By the known names alone, see PARTS.
    for path, what in ((path, what) for name, what in PARTS.items() for path in sorted(folder.glob(name))):
        files = 1 if path.is_file() else sum(1 for one in path.rglob("*") if one.is_file())
        size = path.stat().st_size if path.is_file() else folder_bytes(path)
        parts.append(CachedPart(path.name, size, files, what))
    return sorted(parts, key=lambda part: -part.size_bytes)


def clear_cache(names: Sequence[str] | None = None) -> int:
    """Deletes what the cache holds, or the parts of these names; returns the bytes that it had.

    Raises:
        UserError: there is no such part.
    """
    there = {part.name: part for part in cached_parts()}
    for name in names or ():
        if name not in there:
            raise unknown_name("part of the cache", name, there, "dollartune cache ls")
    freed = 0
    for name in names if names is not None else there:
        path = cache_directory() / name
        # A link is removed and not followed: it may lead out of the cache.
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        freed += there[name].size_bytes
    return freed
