"""Files that are whole or not there: whoever reads one never sees a half of it, whatever ends the writer."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Writes to a temporary name beside the file and renames it; makes the folder where there is none.

    Args:
        durable: wait until the disk has it, so that it survives a power cut too. Without that it survives the death of
            the process alone: enough for what can be made again, and for what is written every second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, as only a rename within one file system is atomic; with a name of its own, as two processes may
    # write the same cache. Not by `tempfile`: its files are private, and what this becomes is as open as any other.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())  # before the rename: a name that is there with nothing in it would look whole
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
