"""The first line of a csv file: names of columns, columns without a name, or a row of data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dollartune.errors import UserError

# pandas reads and writes an index again and again: each time one more such column.
_UNNAMED = re.compile(r"(Unnamed: ?\d+(_level_\d+)?|level_0|__index_level_\d+__)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

COMPARED = 200
"""Rows that a first line is compared with: enough to see that a column repeats its values."""


def named_columns(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], notes: list[str]
) -> tuple[list[str | None], list[str] | None]:
    """The name of each column, None for one that is left out; and the first line where it is a row of data.

    Args:
        path: for messages.
        header: the values of the first line.
        rows: the values of the others.
        notes: gets a sentence for what is left out and for a first line that is data.

    Raises:
        UserError: no column has a name, or the first line looks like a row.
    """
    why = _is_data(header, rows)
    if why is not None:
        names = [f"column{number}" for number in range(1, len(header) + 1)]
        notes.append(
            f"{path.name} has no line of names: {why}. The columns are called {', '.join(names)}; to name them, add a first "
            "line such as text,label"
        )
        return list(names), list(header)
    _refuse_sentences(path, header, rows)
    kept: list[str | None] = []
    left_out: list[str] = []
    for position, name in enumerate(header, start=1):
        if name and (not _UNNAMED.fullmatch(name) or not counts(rows, position - 1)):
            kept.append(name)
        else:
            kept.append(None)
            left_out.append(repr(name) if name else f"number {position}, which has no name")
    if not any(kept):
        raise UserError(f"{path.name}, line 1: no column has a name.", "The first line should name the columns.")
    kept = _told_apart(path, kept, rows, notes)
    if left_out:
        notes.append(f"{path.name}: left out column {', '.join(left_out)} (an index, as tools write it)")
    return kept, None


def _told_apart(
    path: Path, names: Sequence[str | None], rows: Sequence[Sequence[str]], notes: list[str]
) -> list[str | None]:
    """Names without repetition: a column that repeats another is left out, one of other values is called as pandas calls it."""
    first: dict[str, int] = {}
    made: list[str | None] = []
    for position, name in enumerate(names):
        if name is None or name not in first:
            made.append(name)
            if name is not None:
                first[name] = position
            continue
        if all(row[position] == row[first[name]] for row in rows):
            made.append(None)
            notes.append(f"{path.name}: column {name!r} stands twice with the same values, and is read once")
            continue
        number = next(n for n in range(1, len(names)) if f"{name}.{n}" not in (*names, *made))
        made.append(f"{name}.{number}")
        notes.append(f"{path.name}: the header names column {name!r} twice; the other is called '{name}.{number}'")
    return made


def counts(rows: Sequence[Sequence[str]], position: int) -> bool:
    """Whether a column holds whole numbers only, as an index does."""
    return all(row[position].strip().isdigit() for row in rows[:COMPARED])


def _is_data(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """What proves that the first line is a row: one of its values stands below it as a class of that column does, or it is a
    number above numbers."""
    # One column proves nothing: a name above texts looks like a text.
    if len(header) < 2 or not rows:
        return None
    some = rows[:COMPARED]
    for position, value in enumerate(header):
        below = [row[position].strip() for row in some]
        # A value that comes back, in a column of few values: a name may occur once by chance (a text that says "text").
        # Twice at least: once would be a coincidence that a name may have.
        if value and below.count(value) >= 2 and 2 * len(set(below)) <= len(below):
            return f"{value!r} in it stands {below.count(value)} times in the rows below"
    numbers = [position for position, value in enumerate(header) if _NUMBER.fullmatch(value)]
    if numbers and all(_NUMBER.fullmatch(row[position].strip()) for row in some for position in numbers):
        others = [position for position in range(len(header)) if position not in numbers]
        # Years and dates head columns of wide tables: there every other name is a short word.
        if any(_sentence(header[position]) for position in others):
            return f"{header[numbers[0]]!r} in it is a number above numbers"
    return None


def _refuse_sentences(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Asks about a name that reads like the texts below it.

    Raises:
        UserError: there is one.
    """
    for position, value in enumerate(header):
        if not _sentence(value) or not rows:
            continue
        below = [len(row[position].split()) for row in rows[:COMPARED]]
        mean = sum(below) / len(below)
        # A survey's question heads short answers; a row of data heads texts of its own length.
        # Three times either way, as texts of one column vary.
        if mean / 3 <= len(value.split()) <= 3 * mean:
            raise UserError(
                f"{path.name}, line 1: the first line should name the columns, and {value[:60]!r} reads like a row of data.",
                "Add a first line of names, such as: text,label",
            )


def _sentence(value: str) -> bool:
    # Four words: names of columns in wide tables have up to three (`number of stars`).
    return len(value.split()) >= 4
