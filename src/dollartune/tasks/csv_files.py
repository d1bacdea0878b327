"""The reader of csv and tsv files, compressed or not, row by row with line numbers."""

from __future__ import annotations

import csv
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dollartune.errors import UserError
from dollartune.tasks.compression import opened
from dollartune.tasks.encodings import NOT_UTF8, text_lines, undecodable
from dollartune.tasks.headers import counts, named_columns
from dollartune.tasks.rows import BadRows, Row

# csv's limit of a field's length is one number for the whole process.
_field_limit = threading.Lock()


def read_csv(path: Path, bad: BadRows, notes: list[str], delimiter: str | None = None) -> list[Row]:
    """Reads a file with a header line; quoted values may hold delimiters and line breaks (RFC 4180).

    Quotes are plain text where the content says so (see `_quotes_are_text`). Columns without a name (the index that
    pandas and R write) are left out. A first line that is data is read as such where the rows prove it.

    Args:
        path: the file, UTF-8 with or without byte order mark, or UTF-16 with one.
        bad: what to do with a row of the wrong length, a broken quote, or bytes that are not UTF-8.
        notes: gets a line for each guess.
        delimiter: `\\t` for tsv; None takes a comma where the header has one, else the most frequent of `;` tab `|` in
            it. One that is not in the header, which has another of these, is taken for a mistake of the name.

    Raises:
        UserError: the file is empty or unreadable, or the header names no column, or is a row of data.
    """
    with opened(path) as binary, long_fields():
        lines = text_lines(path, binary)
        # Excel's own line, which tells it the delimiter; counted, so that later lines keep their numbers.
        before = 0
        if lines and (said := re.fullmatch(r"sep=(.)\r?\n?", lines[0], re.IGNORECASE)):
            delimiter, before, lines = said[1], 1, lines[1:]
        if not lines or not lines[0].strip():
            raise UserError(f"{path} is empty: its first line should name the columns.")
        # Names are often wrong about it; a header of one column has none at all.
        if delimiter is None or (delimiter not in lines[0] and any(mark in lines[0] for mark in ",;|\t")):
            delimiter = _delimiter(path, lines[0], notes)
        plain = _quotes_are_text(lines, delimiter)
        if plain:
            notes.append(
                f"{path.name}: quotes are read as text, as every line has the header's number of {delimiter!r}"
            )
        elif (doubled := _doubled_quotes(lines, delimiter)) is not None:
            notes.append(f'{path.name}: quotes inside values are written \\" (guessed)')
            lines = doubled
        header, parsed = _parsed(path, lines, delimiter, plain, before)
    parsed = _same_length(path, header, parsed, notes)
    rows: list[tuple[list[str], str]] = []
    for values, where in parsed:
        if isinstance(values, str):
            bad.report(where, values)
        elif len(values) != len(header):
            one = " (no , ; tab or | separates names in it)" if len(header) == 1 else ""
            bad.report(
                where, f"{_count(len(values), 'value')}, but the header names {_count(len(header), 'column')}{one}"
            )
        elif any(undecodable(value) for value in values):
            bad.report(where, NOT_UTF8)
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
        rows.insert(0, (data, f"{path.name}, line {before + 1}"))
    kept = [(index, name) for index, name in enumerate(names) if name is not None]
    return [Row({name: values[index] for index, name in kept}, where) for values, where in rows]


def _delimiter(path: Path, header: str, notes: list[str]) -> str:
    # A comma anywhere in the header decides for it: names of columns rarely hold one, and semicolons stand inside texts.
    if "," in header:
        return ","
    delimiter = max(",;\t|", key=header.count)
    if delimiter != ",":
        notes.append(f"{path.name}: values are separated by {delimiter!r} (guessed from the header)")
    return delimiter


def _parsed(
    path: Path, lines: Sequence[str], delimiter: str, plain: bool, before: int
) -> tuple[list[str], list[tuple[list[str] | str, str]]]:
    """The header; and for each row its values, or what is wrong with it, with the place it stands at."""
    reader = csv.reader(lines, delimiter=delimiter, strict=not plain, quoting=csv.QUOTE_NONE if plain else 0)
    header = _header(path, reader)
    parsed: list[tuple[list[str] | str, str]] = []
    while True:
        where = f"{path.name}, line {before + reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            parsed.append((f"not valid csv ({error}); look for a quote that is not closed", where))
            continue
        if values is None:
            return header, parsed
        if values:  # an empty line holds no row
            parsed.append((values, where))


def _same_length(
    path: Path, header: list[str], parsed: list[tuple[list[str] | str, str]], notes: list[str]
) -> list[tuple[list[str] | str, str]]:
    """Rows without the one value that all have beyond the header: nothing after a last delimiter, or a number of the row in
    front, as R's `write.table` puts it."""
    rows = [values for values, _ in parsed if not isinstance(values, str)]
    if not rows or any(len(values) != len(header) + 1 for values in rows):
        return parsed
    if not any(values[-1].strip() for values in rows):
        part, what = slice(None, -1), "an empty value at the end of every row is left out"
    # Numbers only, as R names rows by default: other values in front may be the first half of one that holds a comma.
    elif len({values[0] for values in rows}) == len(rows) > 1 and counts(rows, 0):
        part, what = slice(1, None), "the first value of every row, which has no name in the header, is left out"
    else:
        return parsed
    notes.append(f"{path.name}: {what}")
    return [(values if isinstance(values, str) else values[part], where) for values, where in parsed]


def _doubled_quotes(lines: Sequence[str], delimiter: str) -> list[str] | None:
    r"""Lines whose quotes inside values are doubled rather than written \", as Spark and MySQL do; None where they are not so.

    Other backslashes stay: each program has its own meaning for them.
    """
    if not any('\\"' in line for line in lines) or _reads_well(lines, delimiter):
        return None
    doubled = [line.replace('\\"', '""') for line in lines]
    return doubled if _reads_well(doubled, delimiter) else None


def _reads_well(lines: Sequence[str], delimiter: str) -> bool:
    """Whether every row has as many values as the header, and every quote its end."""
    try:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        number = len(next(reader))
        return all(len(values) in (0, number) for values in reader)
    except csv.Error:
        return False


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
    return not _reads_well(lines, delimiter)


_WRITTEN = re.compile(r'"(?:[^"]|"")*"')
"""A value as a csv writer quotes it."""


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        # Names are stripped, values are not: space around a name is never meant, space in a text may be.
        header = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise UserError(f"{path.name}, line 1: the header is not valid csv ({error}).") from error
    # Without a header nothing can be read, so this is no bad row that could be left out.
    if any(undecodable(name) for name in header):
        raise UserError(f"{path.name}, line 1: {NOT_UTF8}.")
    return header


@contextmanager
def long_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters per value, which is process-wide, while a file is read."""
    # A lock, as two threads that read files would restore each other's limit.
    with _field_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
