"""Readers of JSON and JSON lines, in the shapes in which programs write a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollartune.errors import UserError
from dollartune.tasks.compression import opened
from dollartune.tasks.encodings import NOT_UTF8, text_lines, undecodable
from dollartune.tasks.headers import named_columns
from dollartune.tasks.rows import SPLIT_NAMES, BadRows, Row
from dollartune.tasks.turns import is_conversation
from dollartune.tasks.values import as_text

LOOKED_AT = 100
"""Rows by which it is told where the texts are."""


def read_jsonl(path: Path, bad: BadRows, notes: list[str]) -> list[Row]:
    """Reads one JSON object per line; empty lines are allowed. A line may also be a list: of turns, or of values.

    Raises:
        UserError: the file is unreadable; or a line is malformed and malformed rows stop the run.
    """
    records: list[tuple[Any, str]] = []
    with opened(path) as binary:
        for number, line in enumerate(text_lines(path, binary), start=1):
            where = f"{path.name}, line {number}"
            if not line.strip():
                continue
            if undecodable(line):
                bad.report(where, NOT_UTF8)
                continue
            try:
                records.append((json.loads(line), where))
            # RecursionError: a line of ten thousand brackets is malformed as well, and must not end the program.
            except (json.JSONDecodeError, RecursionError) as error:
                bad.report(where, f"not valid JSON ({error})")
    return _rows_of_records(path, records, bad, notes)


def read_json(path: Path, bad: BadRows, notes: list[str]) -> list[Row]:
    """Reads a JSON file: a list of objects, an object that holds one (see `_records_inside`), or one object for each line.

    Raises:
        UserError: the file holds something else.
    """
    with opened(path) as binary:
        lines = text_lines(path, binary)
    text = "".join(lines)
    if undecodable(text):
        raise UserError(f"{path} is {NOT_UTF8}.")
    try:
        records = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and _is_object(lines[0] if lines else ""):
            notes.append(f"{path.name}: one JSON object for each line")
            return read_jsonl(path, bad, notes)
        raise UserError(f"{path} is not valid JSON: {error}.", "One object per line? Then name it .jsonl.") from error
    if isinstance(records, dict):
        records = _records_inside(path, records, notes)
    if not isinstance(records, list):
        raise UserError(
            f"{path} should hold a list of objects; it holds {_json_type(records)}.",
            'Write one object for each row, such as: [{"text": "..", "label": ".."}]',
        )
    numbered = [(values, f"{path.name}, row {number}") for number, values in enumerate(records, start=1)]
    return _rows_of_records(path, numbered, bad, notes)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _records_inside(path: Path, whole: dict[str, Any], notes: list[str]) -> Any:
    """The records of a JSON object: its splits, its only list of objects, or one of pandas' forms; else the object itself.

    The rows of splits get a column `split`.
    """
    splits = {name: rows for name, rows in whole.items() if name.lower() in SPLIT_NAMES and isinstance(rows, list)}
    if any(SPLIT_NAMES[name.lower()] == "train" for name in splits):
        others = [name for name, rows in whole.items() if name not in splits and isinstance(rows, list)]
        notes.append(
            f"{path.name}: the splits are {', '.join(splits)}" + (f"; not read: {', '.join(others)}" * bool(others))
        )
        return _with_split(splits)
    lists = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    # Two lists could be rows and their descriptions: nobody can tell which.
    if len(lists) == 1:
        notes.append(f"{path.name}: the rows are the list under {lists[0]!r}")
        return whole[lists[0]]
    names, data = whole.get("columns"), whole.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(_is_row(row, len(names)) for row in data):
        notes.append(f"{path.name}: columns, index and data, as pandas writes tables (orient='split')")
        return [dict(zip(map(str, names), row, strict=True)) for row in data]
    values = list(whole.values())
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        # The index of a table counts its rows; names of columns do not count.
        if all(name.isdigit() for name in whole) and not all(name.isdigit() for name in values[0]):
            notes.append(
                f"{path.name}: one object for each row under its number, as pandas writes tables (orient='index')"
            )
            return values
        notes.append(f"{path.name}: one object for each column, as pandas writes tables")
        return [{name: column[key] for name, column in whole.items()} for key in values[0]]
    if values and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        notes.append(f"{path.name}: one list for each column")
        return [{name: column[index] for name, column in whole.items()} for index in range(len(values[0]))]
    return whole


def _rows_of_records(path: Path, records: Sequence[tuple[Any, str]], bad: BadRows, notes: list[str]) -> list[Row]:
    """Rows of parsed records, each with the place it stands at.

    A record is an object; or a list of turns, which goes under `messages`; or, where all are, a list of values. Where all texts
    lie in objects inside the records, their fields become columns: `data.text`.
    """
    named = [({"messages": values}, where) if is_conversation(values) else (values, where) for values, where in records]
    first = named[0][0] if named else None
    if len(named) > 1 and isinstance(first, list) and all(_is_row(values, len(first)) for values, _ in named):
        named = _with_names(path, named, notes)
    rows: list[Row] = []
    for values, where in named:
        if isinstance(values, dict):
            rows.append(Row(values, where))
        else:
            bad.report(where, f"a JSON object is expected, not {_json_type(values)}")
    return _opened_objects(path, rows, notes)


def _with_split(splits: Mapping[str, list[Any]]) -> list[Any]:
    """The records of all splits, each with its split: under `split`, or as the last value of a list."""
    # One split is no column.
    if len(splits) == 1:
        return next(iter(splits.values()))
    firsts = [rows[0] for rows in splits.values() if rows]
    # A line of names stands in each split, and is told by that; it must not become a row of the others.
    named = len(firsts) > 1 and all(first == firsts[0] and _is_names(first) for first in firsts)
    records: list[Any] = [[*firsts[0], "split"]] if named else []
    for split, rows in splits.items():
        for record in rows[1:] if named else rows:
            # A conversation is one value: the split is none of its turns.
            values = {"messages": record} if is_conversation(record) else record
            if isinstance(values, dict):
                records.append({**values, "split": split})
            else:
                records.append([*values, split] if isinstance(values, list) else values)
    return records


def _is_row(values: Any, number: int) -> bool:
    return isinstance(values, list) and len(values) == number and not any(isinstance(v, dict | list) for v in values)


def _is_names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _with_names(path: Path, records: Sequence[tuple[Any, str]], notes: list[str]) -> list[tuple[Any, str]]:
    """Lists of values under names of columns: those of the first list where it holds some."""
    texts = [[as_text(value) for value in values] for values, _ in records]
    names, first = named_columns(path, texts[0], texts[1:], notes)
    rest = records if first is not None else records[1:]
    return [({n: v for n, v in zip(names, values, strict=True) if n is not None}, where) for values, where in rest]


def _opened_objects(path: Path, rows: list[Row], notes: list[str]) -> list[Row]:
    some = [row.values for row in rows[:LOOKED_AT]]
    # Identifiers may stand beside: one word.
    texts = any(
        isinstance(v, list) or (isinstance(v, str) and len(v.split()) > 1) for values in some for v in values.values()
    )
    objects = dict.fromkeys(name for values in some for name, value in values.items() if isinstance(value, Mapping))
    if texts or not objects or any(is_conversation(values.get(name)) for values in some for name in objects):
        return rows
    notes.append(
        f"{path.name}: the fields of {', '.join(map(repr, objects))} are columns, as in {_example(some, objects)!r}"
    )
    return [Row(_flat(row.values, objects), row.where) for row in rows]


def _example(some: Sequence[Mapping[str, Any]], objects: Mapping[str, None]) -> str:
    return next(name for values in some for name in _flat(values, objects) if name not in values)


def _flat(values: Mapping[str, Any], objects: Mapping[str, None]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in objects and isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": field for inner, field in value.items()}
        else:
            flat[name] = value
    return flat


def _json_type(value: Any) -> str:
    """What a value is called in JSON, with its article."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
