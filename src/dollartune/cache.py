"""The folder that the package keeps between runs: what is costly to make again and belongs to no study."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollartune.files import write_atomically


def cache_directory() -> Path:
    """`$DOLLARTUNE_CACHE`, or `dollartune` under the user's cache directory."""
    base = os.environ.get("DOLLARTUNE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dollartune"


@dataclass(frozen=True)
class CacheEntry:
    """A JSON value in a file of its own."""

    path: Path

    def read(self) -> Any:
        """What was kept; None where nothing was, or where the file was cut or is not ours."""
        try:
            return json.loads(self.path.read_text(encoding="utf8"))
        except (OSError, ValueError):
            return None

    def write(self, value: Any) -> None:
        """Keeps it, where the folder can be written: else it is made again, which costs time only."""
        with suppress(OSError):
            write_atomically(self.path, json.dumps(value).encode(), durable=False)


def cache_entry(part: str, *decisive: object) -> CacheEntry:
    """Where something is kept that these values decide.

    Args:
        part: folder in the cache, one of `cached_parts.PARTS`.
    """
    return CacheEntry(cache_directory() / part / f"{hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]}.json")
