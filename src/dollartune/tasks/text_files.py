"""Readers of csv, tsv, json lines and json files, compressed with gzip or not, row by row with line numbers."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dollartune.errors import UserError
from dollartune.tasks.headers import named_columns
from dollartune.tasks.rows import BadRows, Row

# csv's limit of a field's length is one number for the whole process.
_field_limit = threading.Lock()


def read_csv(path: Path, bad: BadRows, notes: list[str], delimiter: str | None = None) -> list[Row]:
    """Reads a file with a header line; quoted values may hold delimiters and line breaks (RFC 4180).

    Quotes are plain text where the content says so (see `_quotes_are_text`). Columns without a name (the index that
    pandas and R write) are left out. A first line that is data is read as such where the rows prove it.

    Args:
        path: the file, UTF-8 with or without byte order mark.
        bad: what to do with a row of the wrong length, a broken quote, or bytes that are not UTF-8.
        notes: gets a line for each guess.
        delimiter: `\\t` for tsv; None takes the most frequent of `,` `;` tab `|` in the header.

    Raises:
        UserError: the file is empty or unreadable, or the header names a column twice, none at all, or is a row of data.
    """
    rows: list[tuple[list[str], str]] = []
    with _opened(path) as binary, _long_fields():
        # Undecodable bytes become lone surrogates, so that the row that holds them can be named.
        lines = [line.decode("utf-8", errors="surrogateescape") for line in binary]
        first = lines[0].removeprefix("\ufeff") if lines else ""
        if not first.strip():
            raise UserError(f"{path} is empty: its first line should name the columns.")
        lines[0] = first
        if delimiter is None:
            # A comma anywhere in the header decides for it: names of columns rarely hold one, and semicolons stand
            # inside texts.
            delimiter = max(",;\t|", key=first.count) if first.count(",") == 0 else ","
            if delimiter != ",":
                notes.append(f"{path.name}: values are separated by {delimiter!r} (guessed from the header)")
        plain = _quotes_are_text(lines, delimiter)
        if plain:
            notes.append(
                f"{path.name}: quotes are read as text, as every line has the header's number of {delimiter!r}"
            )
        reader = csv.reader(lines, delimiter=delimiter, strict=not plain, quoting=csv.QUOTE_NONE if plain else 0)
        header = _header(path, reader)
        while True:
            where = f"{path.name}, line {reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                bad.report(where, f"not valid csv ({error}); look for a quote that is not closed")
                continue
            if values is None:
                break
            if not values:
                continue  # an empty line holds no row
            if len(values) != len(header):
                bad.report(
                    where, f"{_count(len(values), 'value')}, but the header names {_count(len(header), 'column')}"
                )
            elif any(_undecodable(value) for value in values):
                bad.report(where, "not valid UTF-8; save the file as UTF-8")
            else:
                rows.append((values, where))
    # Lines that would be a row each without quotes: far more than there are rows means that a quote swallowed some.
    complete = sum(line.count(delimiter) == len(header) - 1 for line in lines[1:] if line.strip())
    if len(header) > 1 and len(rows) + len(bad.skipped) < complete:
        notes.append(
            f"{path.name}: {complete} lines have the header's number of {delimiter!r} and make {len(rows)} rows, because "
            "quoted values go over several lines; look for a quote that is not closed if that is too few"
        )
    names, data = named_columns(path, header, [values for values, _ in rows], notes)
    if data is not None:
        # The first line is a row after all.
        rows.insert(0, (data, f"{path.name}, line 1"))
    kept = [(index, name) for index, name in enumerate(names) if name is not None]
    return [Row({name: values[index] for index, name in kept}, where) for values, where in rows]


def _quotes_are_text(lines: Sequence[str], delimiter: str) -> bool:
    """Whether quotes belong to the values, as in the tab-separated files of GLUE, SST and CommonVoice.

    True where every line has the header's number of delimiters and some quote cannot be one that a csv writer wrote (it
    quotes whole values and doubles the quotes inside). With other delimiters than a tab, a file that reads well with quoting
    is read with it, since values with commas inside are what quotes are for.
    """
    if not any('"' in line for line in lines):
        return False
    ends = "\r\n"
    number = lines[0].rstrip(ends).count(delimiter)
    if number == 0 or lines[0].lstrip().startswith('"'):
        return False
    broken = False
    for line in lines:
        fields = line.rstrip(ends).split(delimiter)
        if fields == [""]:
            continue
        # One line with another number of fields is enough: then delimiters stand inside quotes.
        if len(fields) != number + 1:
            return False
        broken = broken or any('"' in field and not _WRITTEN.fullmatch(field) for field in fields)
    # Writers of tab-separated files rarely quote, so a quote that none would write decides there.
    if not broken or delimiter == "\t":
        return broken
    try:
        return any(len(values) not in (0, number + 1) for values in csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return True


_WRITTEN = re.compile(r'"(?:[^"]|"")*"')
"""A value as a csv writer quotes it."""


def read_jsonl(path: Path, bad: BadRows) -> list[Row]:
    """Reads one JSON object per line; empty lines are allowed.

    Raises:
        UserError: the file is unreadable; or a line is malformed and malformed rows stop the run.
    """
    rows: list[Row] = []
    with _opened(path) as binary:
        for number, raw in enumerate(binary, start=1):
            where = f"{path.name}, line {number}"
            try:
                # Only a file's first line can have the byte order mark that spreadsheet programs write.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                bad.report(where, "not valid UTF-8; save the file as UTF-8")
                continue
            if not line:
                continue
            try:
                values = json.loads(line)
            # RecursionError: a line of ten thousand brackets is malformed as well, and must not end the program.
            except (json.JSONDecodeError, RecursionError) as error:
                bad.report(where, f"not valid JSON ({error})")
                continue
            _append_record(rows, values, where, bad)
    return rows


def read_json(path: Path, bad: BadRows, notes: list[str]) -> list[Row]:
    """Reads a JSON file: a list of objects, an object that holds one such list, one object for each column (pandas'
    default), or one object for each line.

    Raises:
        UserError: the file holds something else.
    """
    with _opened(path) as binary:
        content = binary.read()
    try:
        # Byte order marks come from spreadsheet programs, and JSON forbids them.
        records = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and _first_line_is_object(content):
            notes.append(f"{path.name}: one JSON object for each line")
            return read_jsonl(path, bad)
        raise UserError(f"{path} is not valid JSON: {error}.", "One object per line? Then name it .jsonl.") from error
    if isinstance(records, dict):
        records = _records_inside(path, records, notes)
    if not isinstance(records, list):
        raise UserError(f"{path} should hold a list of objects; it holds {_json_type(records)}.")
    rows: list[Row] = []
    for number, values in enumerate(records, start=1):
        _append_record(rows, values, f"{path.name}, row {number}", bad)
    return rows


def _first_line_is_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content.decode("utf-8-sig", errors="replace").split("\n", 1)[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _records_inside(path: Path, whole: dict[str, Any], notes: list[str]) -> Any:
    """The records of a JSON object: its only list of objects, or its columns turned into rows; else the object."""
    lists = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    # Two lists could be two splits, or rows and their descriptions: nobody can tell which.
    if len(lists) == 1:
        notes.append(f"{path.name}: the rows are the list under {lists[0]!r}")
        return whole[lists[0]]
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        notes.append(f"{path.name}: one object for each column, as pandas writes tables")
        return [{name: column[key] for name, column in whole.items()} for key in columns[0]]
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        notes.append(f"{path.name}: one list for each column")
        return [{name: column[index] for name, column in whole.items()} for index in range(len(columns[0]))]
    return whole


def _append_record(rows: list[Row], values: Any, where: str, bad: BadRows) -> None:
    if isinstance(values, dict):
        rows.append(Row(values, where))
    else:
        bad.report(where, f"a JSON object is expected, not {_json_type(values)}")


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        # Names are stripped, values are not: space around a name is never meant, space in a text may be.
        header = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise UserError(f"{path.name}, line 1: the header is not valid csv ({error}).") from error
    # Without a header nothing can be read, so this is no bad row that could be left out.
    if any(_undecodable(name) for name in header):
        raise UserError(f"{path.name}, line 1: not valid UTF-8.", "Save the file as UTF-8 and try again.")
    return header


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if it is compressed; damage to the compression is an error of the file."""
    try:
        # By content: browsers and `curl -o` keep a name without .gz for what a server sent compressed.
        compressed = path.suffix == ".gz" or beginning(path).startswith(GZIP)
        with gzip.open(path, "rb") if compressed else path.open("rb") as binary:
            yield cast(IO[bytes], binary)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}.", "Copy or download it again.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


GZIP = b"\x1f\x8b"


def beginning(path: Path, count: int = 64, unpacked: bool = False) -> bytes:
    """The first bytes of a file, of what it unpacks to if asked; nothing where it cannot be read."""
    try:
        with path.open("rb") as binary:
            start = binary.read(count)
        if unpacked and start.startswith(GZIP):
            with gzip.open(path, "rb") as stream:
                return stream.read(count)
    except (OSError, EOFError, zlib.error):
        return b""
    return start


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters per value, which is process-wide, while a file is read."""
    # A lock, as two threads that read files would restore each other's limit.
    with _field_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _undecodable(value: str) -> bool:
    # Bytes that are not UTF-8 arrive as surrogates (`surrogateescape`), so that the reader can name their line.
    return any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
