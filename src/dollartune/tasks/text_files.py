"""Readers of csv, tsv, json lines and json files, compressed with gzip or not, row by row with line numbers."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dollartune.errors import UserError
from dollartune.tasks.rows import BadRows, Row

_field_limit = threading.Lock()


def read_csv(path: Path, bad: BadRows, notes: list[str], delimiter: str | None = None) -> list[Row]:
    """Reads a file with a header line; quoted values may hold delimiters and line breaks (RFC 4180).

    Args:
        path: the file, UTF-8 with or without byte order mark.
        bad: what to do with a row of the wrong length, a broken quote, or bytes that are not UTF-8.
        notes: gets a line when the delimiter had to be guessed.
        delimiter: `\\t` for tsv; None takes the most frequent of `,` `;` tab `|` in the header.

    Raises:
        UserError: the file is empty or unreadable, or the header names a column twice or not at all.
    """
    rows: list[Row] = []
    with _opened(path) as binary, _long_fields():
        # Undecodable bytes become lone surrogates, so that the row that holds them can be named.
        lines = (line.decode("utf-8", errors="surrogateescape") for line in binary)
        first = next(lines, "").removeprefix("\ufeff")
        if not first.strip():
            raise UserError(f"{path} is empty: its first line should name the columns.")
        if delimiter is None:
            delimiter = max(",;\t|", key=first.count) if first.count(",") == 0 else ","
            if delimiter != ",":
                notes.append(f"{path.name}: values are separated by {delimiter!r} (guessed from the header)")
        reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
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
                rows.append(Row(dict(zip(header, values, strict=True)), where))
    return rows


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


def read_json(path: Path, bad: BadRows) -> list[Row]:
    """Reads a JSON file that holds one list of objects.

    Raises:
        UserError: the file is not a JSON list.
    """
    with _opened(path) as binary:
        try:
            records = json.loads(binary.read().decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"{path} is not valid JSON: {error}.", "One object per line? Then name it .jsonl."
            ) from error
    if not isinstance(records, list):
        raise UserError(f"{path} should hold a list of objects; it holds {_json_type(records)}.")
    rows: list[Row] = []
    for number, values in enumerate(records, start=1):
        _append_record(rows, values, f"{path.name}, row {number}", bad)
    return rows


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
    if any(_undecodable(name) for name in header):
        raise UserError(f"{path.name}, line 1: not valid UTF-8.", "Save the file as UTF-8 and try again.")
    for name in header:
        if not name:
            raise UserError(f"{path.name}, line 1: column {header.index(name) + 1} of the header has no name.")
        if header.count(name) > 1:
            raise UserError(f"{path.name}, line 1: the header names column {name!r} twice.")
    return header


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if it is compressed; damage to the compression is an error of the file."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as binary:
            yield cast(IO[bytes], binary)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}.", "Copy or download it again.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


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


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _undecodable(value: str) -> bool:
    # Bytes that are not UTF-8 arrive as surrogates (`surrogateescape`), so that the reader can name their line.
    return any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
