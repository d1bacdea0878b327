"""From a path to rows: which reader a file needs, which files of a folder hold which split."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.errors import UserError, nearest
from dollartune.tasks.compression import beginning, compression, unpacked_name
from dollartune.tasks.csv_files import read_csv
from dollartune.tasks.json_files import read_json, read_jsonl
from dollartune.tasks.parquet import read_parquet
from dollartune.tasks.rows import SPLIT_NAMES, BadRows, Row
from dollartune.tasks.values import is_missing

if TYPE_CHECKING:
    from dollartune.tasks.base import SplitName

Reader = Callable[[Path, BadRows, list[str]], list[Row]]

READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": lambda path, bad, notes: read_csv(path, bad, notes, delimiter="\t"),
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
"""File ending -> reader; `.gz`, `.bz2`, `.xz` or `.zip` may follow the ending of a text file."""


def file_format(path: Path) -> str | None:
    """The ending that names the reader of a file, `.csv` for `a.csv.gz`; None if there is no reader for it."""
    name = unpacked_name(path)
    ending = Path(name.lower()).suffix
    # Parquet is compressed inside, and is read from its end.
    if ending == ".parquet" and name != path.name:
        return None
    return ending if ending in READERS else None


def read_file(path: Path, bad: BadRows, notes: list[str]) -> list[Row]:
    """Reads the rows of one data file.

    Args:
        path: csv, tsv, jsonl, json (each also compressed) or parquet.
        bad: what a malformed row does.
        notes: gets a line for every guess and for what was skipped by the caller's choice.

    Raises:
        UserError: no such file, unknown format, no rows.
    """
    require_path(path)
    ending = _by_content(path, file_format(path), notes)
    if ending is None:
        raise UserError(
            f"cannot read {path}: its name should end in {', '.join(READERS)} (text also with .gz, .bz2, .xz or .zip).",
            "A table of another name: copy it to a name with its ending (.csv for any delimiter).",
        )
    rows = READERS[ending](path, bad, notes)
    if not rows:
        raise UserError(f"{path} holds no usable row." + (f" {bad.notes()[0]}." if bad.skipped else ""))
    return rows


def without_empty(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Leaves out the rows of delimiters alone that spreadsheets write for empty ones; says how many."""
    kept = [
        row
        for row in rows
        # A loader of a picture is no missing value, and must not be compared with itself.
        if len(row.values) < 2 or any(callable(value) or not is_missing(value) for value in row.values.values())
    ]
    if len(kept) < len(rows):
        source = rows[0].where.rsplit(", ", 1)[0]
        notes.append(f"{source}: left out {len(rows) - len(kept)} rows without any value, as spreadsheets write them")
    return kept


def _by_content(path: Path, named: str | None, notes: list[str]) -> str | None:
    """The reader that a file's content asks for: names are often wrong, and another reader's errors would mislead.

    Raises:
        UserError: the content is of a known kind that is not read; the message says what it is.
    """
    if path.is_dir():
        raise UserError(f"cannot read {path}: it is a folder.", "Name a file in it.")
    # 4 KB hold the first line of nearly every table, and are one read of a disk.
    start = beginning(path, 4096, unpacked=True)
    for mark, what in _OTHER_KINDS.items():
        if start.startswith(mark):
            raise UserError(f"cannot read {path}: it is {what}.", "Save it as csv in UTF-8, or as json lines.")
    seen = named
    # UTF-16 with its mark; a character cut at the end does not matter here.
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = start.decode("utf-16", "ignore").encode() if wide else start.removeprefix(codecs.BOM_UTF8)
    text = text.lstrip()
    if start.startswith(b"PAR1"):
        seen = ".parquet"
    elif named == ".parquet":
        return named  # its own reader says what is wrong with it
    # JSON lines may be lists too, one a line; a list that goes on over lines is one document.
    elif text.startswith(b"[") and named == ".jsonl" and _is_json(text[:1024].split(b"\n")[0], list) is not True:
        seen = ".json"  # a list over several lines
    elif named in (".csv", ".tsv") and text.startswith((b"{", b"[")):
        line = text.split(b"\n")[0]
        if text.startswith(b"{") and (_is_json(line, dict) or line.rstrip() == b"{"):
            seen = ".jsonl" if _is_json(line, dict) else ".json"
        elif text.startswith(b"[") and text[1:].lstrip().startswith(b"{"):
            seen = ".json"
    if seen != named and named is not None:
        notes.append(f"{path.name}: the content is {str(seen).removeprefix('.')}, whatever the name says")
    how = compression(path)
    if start and how is not None and unpacked_name(path) == path.name:
        notes.append(f"{path.name}: the content is compressed ({how})")
    return seen


def _is_json(line: bytes, kind: type) -> bool:
    try:
        return isinstance(json.loads(line), kind)
    except (ValueError, RecursionError):
        return False


_OTHER_KINDS = {
    b"PK\x03\x04": "a zip or a spreadsheet (xlsx, ods)",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet (xls)",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"ARROW1": "an Arrow file; write it as parquet",
    b"\x80\x04": "a pickle, which is not read because it can run code",
    b"version https://git-lfs": "a pointer of git-lfs and not the data: run `git lfs pull`",
}
"""First bytes -> what a file is."""


def require_path(path: Path) -> None:
    """Raises a `UserError` with the nearest name beside it if there is no such file or folder."""
    if path.exists():
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"no such file or folder: {str(path)!r}; there is no folder {str(folder)!r} either.")
    names = [entry.name for entry in folder.iterdir()]
    searched = "the current folder" if folder == Path(".") else str(folder)
    raise UserError(
        f"no such file or folder: {path.name!r} in {searched}.{nearest(path.name, names)}",
        "For a preset, run `dollartune tasks ls`; for a data set of the hub, write its owner too: `owner/name`.",
    )


def split_files(folder: Path) -> dict[SplitName, Path]:
    """The data files of a folder that are named after a split, for example `train.jsonl.gz` and `dev.csv`.

    Raises:
        UserError: two files claim the same split.
    """
    by_split: dict[SplitName, Path] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_NAMES.get(path.name.lower().split(".")[0])
        # By the name's beginning: `train.jsonl.gz` and `train-00000.parquet` differ in what follows.
        if split is None or not path.is_file() or file_format(path) is None:
            continue
        if split in by_split:
            raise UserError(
                f"{folder} has two files for the {split} split: {by_split[split].name} and {path.name}.",
                "Move one away, or name a single file.",
            )
        by_split[split] = path
    return by_split
