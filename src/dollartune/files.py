"""Files that are whole or not there: whoever reads one never sees a half of it, whatever ends the writer."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dollartune.errors import UserError


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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, atomically, that every reader takes: what is not finite becomes null."""
    write_atomically(path, json.dumps(finite(values), indent=1, ensure_ascii=False, allow_nan=False).encode())


def finite(value: Any) -> Any:
    """JSON has no NaN: not-a-number becomes null, tuples lists."""
    if isinstance(value, float):
        # Python would write NaN, which no other reader of JSON takes.
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def lock(file: IO[Any]) -> bool:
    """Takes an open file for this process until it is closed; False where another process has it."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A share of Windows says the second where POSIX allows either. All else is a file system without such locks, which is not
        # to be taken for a process that runs.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def discard_folder(folder: Path) -> None:
    """Deletes a folder that others look for by its name: a kill in between leaves none of that name, and not a half of one.

    One that cannot be deleted stays, whole.
    """
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a kill before
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone)


def replace_folder(new: Path, target: Path) -> None:
    """Puts the folder `new` at `target`, where there may be an older one, which goes away.

    On Linux the two change places in one operation. Elsewhere the old one is moved aside first, and for a moment there is none.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        new.rename(target)
        return
    if not _exchange(new, target):
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        target.rename(aside)
        new.rename(target)
        new = aside
    shutil.rmtree(new, ignore_errors=True)


def need_empty(folder: Path) -> None:
    """Refuses a place to write a folder where there is something already: nothing is overwritten.

    Raises:
        UserError: there is a file, or a folder that holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{str(folder)!r} is {'not empty' if folder.is_dir() else 'a file'}; a folder is written where there is none, or "
            "an empty one.",
            hint="Give another --out.",
        )


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """A folder to fill and to verify, which gets its name when the block ends, and is gone if the block fails.

    Args:
        folder: must not exist yet, or be empty.

    Raises:
        UserError: there is something.
    """
    need_empty(folder)
    folder = folder.resolve()  # a link to an empty folder stays a link to it
    # An empty folder that is there stays there, and gets the files: it may be a mount point, or where the program runs, which
    # nothing can be renamed to.
    stays = folder.is_dir()
    around = folder if stays else folder.parent
    around.mkdir(parents=True, exist_ok=True)
    # On the file system of its place, so that files are renamed and never copied.
    draft = Path(tempfile.mkdtemp(dir=around, prefix=f".{folder.name}."))
    try:
        yield draft
        if stays:
            # Configs last: who watches the folder takes it for whole as soon as it has one.
            for path in sorted(draft.iterdir(), key=lambda path: path.suffix == ".json"):
                path.rename(folder / path.name)
        else:
            # mkdtemp makes folders that only their owner reads, and a server often runs as someone else.
            draft.chmod(0o755)
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two names change places at once; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    current_folder, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's headers
    return bool(renameat2(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder; one that goes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except OSError:
            continue
    return total
