"""Compressed data files, told by their first bytes: browsers and `curl -o` keep a name without .gz for what a server packed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dollartune.errors import UserError

MARKS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip"}
"""First bytes -> compression."""
ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}
"""Ending of a name -> compression. pandas writes each of them."""
_OPENERS: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def compression(path: Path) -> str | None:
    """How a file is compressed, by its content, else by its name; None for a plain one, and for a zip of several files."""
    start = beginning(path, 8)
    how = next((name for mark, name in MARKS.items() if start.startswith(mark)), ENDINGS.get(path.suffix.lower()))
    return how if how != "zip" or only_member(path) is not None else None


def only_member(path: Path) -> str | None:
    """The name of the one file in a zip; None where it holds several, or is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            # macOS puts a second, unreadable entry for each file under __MACOSX.
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
    except (OSError, zipfile.BadZipFile):
        return None
    return names[0] if len(names) == 1 else None


def unpacked_name(path: Path) -> str:
    """What a file is called when it is unpacked: `a.csv` for `a.csv.gz`, the name of its file for a zip of one."""
    if path.suffix.lower() == ".zip" and (member := only_member(path)) is not None:
        return member
    return path.stem if path.suffix.lower() in ENDINGS else path.name


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if it is compressed.

    Raises:
        UserError: it cannot be read, or its compression is damaged or unknown.
    """
    how = compression(path)
    try:
        if how == "zip":
            with zipfile.ZipFile(path) as archive, open_member(path, archive, str(only_member(path))) as binary:
                yield binary
        else:
            with _OPENERS[how](path, "rb") if how is not None else path.open("rb") as binary:
                yield binary
    except _DAMAGE as error:
        raise UserError(f"{path} is not a complete {how} file: {error}.", "Copy or download it again.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except OSError as error:
        # bz2 has no error of its own.
        if how != "bzip2":
            raise
        raise UserError(f"{path} is not a complete {how} file: {error}.", "Copy or download it again.") from error


def open_member(path: Path, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Opens a file of a zip.

    Args:
        path: the zip, for messages.

    Raises:
        UserError: it is encrypted, or compressed in a way that Python does not know (Deflate64).
    """
    try:
        return archive.open(name)
    # Of both; around this call alone, since errors of other things are of this kind too (RecursionError).
    except RuntimeError as error:
        raise UserError(f"cannot read {path}: {error}.", "Unpack it, and name what was in it.") from error


def beginning(path: Path, count: int = 64, unpacked: bool = False) -> bytes:
    """The first bytes of a file, of what it unpacks to if asked; nothing where it cannot be read."""
    try:
        with opened(path) if unpacked else path.open("rb") as binary:
            return binary.read(count)
    except (OSError, UserError):
        return b""
