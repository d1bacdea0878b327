"""Small values that are kept between runs, each under a hash of everything that decides it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollartune.cache import cache_directory
from dollartune.files import write_atomically


@dataclass(frozen=True)
class Memo:
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


def memo(part: str, *decisive: object) -> Memo:
    """Where something is kept that these values decide.

    Args:
        part: folder in the cache, one of `cached_parts.PARTS`.
    """
    return Memo(cache_directory() / part / f"{hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]}.json")
