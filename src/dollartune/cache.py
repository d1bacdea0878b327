"""The folder that the package keeps between runs: what is costly to make again and belongs to no study."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$DOLLARTUNE_CACHE`, or `dollartune` under the user's cache directory."""
    base = os.environ.get("DOLLARTUNE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dollartune"


def keep(path: Path, content: bytes) -> bool:
    """Keeps what can be made again; says whether it could be: a folder that cannot be written costs time only."""
    from dollartune.files import write_atomically

    try:
        write_atomically(path, content, durable=False)
    except OSError:
        return False
    return True
