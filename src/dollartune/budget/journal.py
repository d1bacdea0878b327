"""How booked time reaches the disk, so that a kill at any moment loses at most one heartbeat and books nothing twice.

    ledger.jsonl            one line per closed piece of time, appended
    ledger.jsonl.open       the piece that is running now, replaced atomically at every heartbeat

Each piece has the key (session, number). When a process dies, its last piece stands in the `.open` file alone; the
next process appends it to the journal under its own key. A kill between the append and the replacement leaves the key
in both files, and the copy in the journal wins, so that time is never counted twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from dollartune.errors import UserError
from dollartune.files import lock, write_atomically


@dataclass(frozen=True)
class Piece:
    """A stretch of time that belongs to one booking, without the time of the bookings nested inside it."""

    session: str
    """The process run that spent it."""
    number: int
    """Position within the session; (session, number) is unique."""
    booking: str
    """Identifier of the `Ledger.book` call: one booking is cut into pieces by those nested inside it."""
    category: str
    """One of `ledger.CATEGORIES`."""
    trial: str | None
    method: str | None
    seconds: float
    price_per_hour: float
    """Dollars per hour of the machine that spent it."""
    started: float
    """Wall-clock time (seconds since 1970) at which the piece began; for people, not for sums."""
    recovered: bool = False
    """True when the process died inside the piece: it then counts up to its last heartbeat."""
    attempt: int = 0
    """Which attempt at its trial it was spent on; one that goes on from a checkpoint is the same one."""

    @property
    def dollars(self) -> float:
        return self.seconds * self.price_per_hour / 3600


@dataclass(frozen=True)
class FailedBooking:
    """The note that a booking ended with an error: its own time then counts as `failure`."""

    booking: str


Line = Piece | FailedBooking


def _encode(line: Line) -> bytes:
    # The newline in the same write: a line without it was cut off, which is how a torn one is known.
    return json.dumps(asdict(line), separators=(",", ":")).encode() + b"\n"


def _decode(text: str, where: str) -> Line:
    try:
        fields: dict[str, Any] = json.loads(text)
        return Piece(**fields) if "number" in fields else FailedBooking(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{where} is not a line of a ledger: {error}.",
            "Restore the file from a copy, or start a new study with --fresh.",
        ) from error


def read_lines(path: Path) -> list[Line]:
    """All lines of a journal. A last line without its newline was cut by a kill and is left out.

    Raises:
        UserError: a complete line cannot be read; the message names its number.
    """
    if not path.exists():
        return []
    # What follows the last newline is empty, or was being written when the process died.
    complete = path.read_bytes().split(b"\n")[:-1]
    return [
        _decode(text.decode(errors="replace"), f"line {number} of {path}")
        for number, text in enumerate(complete, start=1)
        if text.strip()
    ]


def open_path(path: Path) -> Path:
    """Where the running pieces of the journal at `path` are kept."""
    return path.with_name(path.name + ".open")


def read_open(path: Path) -> list[Piece]:
    """The pieces that were running at the last heartbeat (none after a clean end)."""
    try:
        text = open_path(path).read_text()
    except FileNotFoundError:
        return []
    pieces = [_decode(line, str(open_path(path))) for line in text.splitlines() if line.strip()]
    return [piece for piece in pieces if isinstance(piece, Piece)]


def settled(lines: Iterable[Line], running: Iterable[Piece]) -> tuple[list[Piece], set[str], list[Piece]]:
    """Journal and running pieces as one.

    Returns:
        all pieces, the bookings that failed, and those running pieces that the journal does not have yet.
    """
    pieces: list[Piece] = []
    failed: set[str] = set()
    for line in lines:
        if isinstance(line, Piece):
            pieces.append(line)
        else:
            failed.add(line.booking)
    known = {(piece.session, piece.number) for piece in pieces}
    missing = [piece for piece in running if (piece.session, piece.number) not in known]
    return [*pieces, *missing], failed, missing


def read_settled(path: Path) -> list[Line]:
    """A journal's lines, and what its process was at when it died, as the next one would write it down."""
    running = read_open(path)  # first: what is settled between the two is in both, and counts once
    lines = read_lines(path)
    _, _, missing = settled(lines, running)
    return [*lines, *(replace(piece, recovered=True) for piece in missing)]


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Writes a journal, whole. Of lines with one key (a copy's, one that was merged before) the first counts."""
    by_key: dict[Any, Line] = {}
    for line in lines:
        by_key.setdefault((line.session, line.number) if isinstance(line, Piece) else line.booking, line)
    write_atomically(path, b"".join(map(_encode, by_key.values())))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps other processes from writing the journal at `path`, and so from running its study, whatever stands in it.

    Raises:
        UserError: another living process is writing it.
    """
    with _opened(path):
        yield


def _opened(path: Path) -> IO[bytes]:
    """The file for appending, locked until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115 - held open for the lock
    if not lock(file):
        file.close()
        raise UserError(
            f"another process is writing {path}: the same study is already running.",
            "Wait for it, or stop it; the same command then resumes.",
        )
    return file


class Journal:
    """The writing side; one process at a time.

    Raises:
        UserError: another living process is writing the same journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Before anything is read or cut: another process may be writing that line right now.
        self._file = _opened(path)
        try:
            self._begin()
        except BaseException:
            self._file.close()  # whoever mends it, or makes room on the disk, goes on from this process, too
            raise

    def _begin(self) -> None:
        self._cut_torn_line()
        pieces, self.failed, missing = settled(read_lines(self.path), read_open(self.path))
        # Without those that are appended below, marked as recovered.
        self.pieces = pieces[: len(pieces) - len(missing)]
        for piece in missing:
            # Under its own key, so that a second kill between this and the deletion of the open file books nothing
            # twice.
            self.append(replace(piece, recovered=True))
            self.pieces.append(replace(piece, recovered=True))
        open_path(self.path).unlink(missing_ok=True)

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)

    def append(self, line: Line) -> None:
        self._file.write(_encode(line))
        # To the system, not to the disk: a killed process loses nothing, and a sync per piece would be slower than many
        # pieces last. A power cut may lose seconds of accounts, not records.
        self._file.flush()

    def beat(self, running: Iterable[Piece]) -> None:
        """Replaces the record of what is running now."""
        # Replaced whole: a half-written open file would lose the piece that it is there to save.
        write_atomically(open_path(self.path), b"".join(_encode(piece) for piece in running), durable=False)

    def end(self) -> None:
        """Everything is settled, so nothing is running: a next process must find nothing to recover."""
        self._file.flush()  # first: what finds no room on the disk stands in the other file still
        open_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file and its lock."""
        self._file.close()
