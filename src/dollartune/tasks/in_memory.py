"""Rows that a program holds: a DataFrame, a `datasets.Dataset`, lists. They become a file.

So all that goes with a file holds for them: the same rows are found again, a study resumes, an adapter knows on which rows it was
tuned.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dollartune.errors import UserError
from dollartune.files import write_atomically

FORMS = "a DataFrame, a datasets.Dataset, a list of mappings, a mapping of columns, or a pair (texts, labels)"


def is_rows(data: Any) -> bool:
    """Whether data is held by the program rather than named: no text, no path, no `task:` mapping."""
    if data is None or isinstance(data, str | Path):
        return False
    if isinstance(data, Mapping):
        columns = list(data.values())
        return bool(columns) and all(_is_column(column) for column in columns)
    return isinstance(data, list | tuple) or hasattr(data, "to_dict")


def write_rows(data: Any, folder: Path, name: str = "") -> Path:
    """Writes rows as json lines; returns the file, after which the task is called.

    Args:
        data: one of `FORMS`.
        folder: where data files go.
        name: of the file; by default what the data call themselves (`imdb`), or what they are (`dataframe`). Where other rows
            have it already, a hash of these follows it.

    Raises:
        UserError: it is none of these, has no rows, or holds what JSON cannot, such as pictures.
    """
    rows = rows_in_memory(data)
    lines = []
    for number, row in enumerate(rows):
        try:
            lines.append(json.dumps({str(key): _plain(value) for key, value in row.items()}, ensure_ascii=False))
        except TypeError as error:
            raise UserError(
                f"row {number} holds what a text file cannot: {error}.",
                hint="Pictures: a folder per class, or a csv with a column of file names (`image: COLUMN`).",
            ) from None
    if not lines:
        raise UserError("the data has no rows.")
    content = ("\n".join(lines) + "\n").encode()
    stem = re.sub(r"[^\w-]+", "_", name or _name_of(data)).strip("_") or "rows"
    path = folder / f"{stem}.jsonl"
    if path.is_file() and path.read_bytes() != content:
        path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        write_atomically(path, content)
    return path


def _name_of(data: Any) -> str:
    """No object knows the variable that holds it; a data set that was loaded by name knows that."""
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return str(getattr(data.info, "dataset_name", None) or "dataset")
    return "dataframe" if hasattr(data, "columns") and hasattr(data, "to_dict") else "rows"


def rows_in_memory(data: Any) -> Iterable[Mapping[str, Any]]:
    """The rows of one of `FORMS`.

    Raises:
        UserError: it is none of these, or columns have different lengths.
    """
    if isinstance(data, Mapping):
        return _of_columns(data)
    if isinstance(data, tuple) and len(data) == 2 and all(_is_column(column) for column in data):
        return _of_columns({"text": data[0], "label": data[1]})
    if isinstance(data, list | tuple):
        for number, row in enumerate(data):
            if not isinstance(row, Mapping):
                raise UserError(f"row {number} is {type(row).__name__}; expected {FORMS}.")
        return data
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas, polars
        # `to_dicts` is polars' own, whose `to_dict` gives Series unless told otherwise
        columns = data.to_dict(as_series=False) if hasattr(data, "to_dicts") else data.to_dict("list")
        return _of_columns(columns)
    if hasattr(data, "features") and hasattr(data, "column_names"):  # datasets.Dataset
        return _of_dataset(data)
    if hasattr(data, "keys") and not hasattr(data, "dtype"):  # a DatasetDict, and no column of a frame
        raise UserError(
            f"this holds several splits ({', '.join(map(str, data.keys()))}).", hint="Give one: data['train']."
        )
    raise UserError(f"data of type {type(data).__name__} is not understood; expected {FORMS}.")


def _of_columns(columns: Mapping[Any, Sequence[Any]]) -> list[dict[str, object]]:
    for name, column in columns.items():
        if not _is_column(column):
            raise UserError(f"column {name!r} is {type(column).__name__}; expected a list of values, one for each row.")
    lengths = {str(name): len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"columns have different lengths: {lengths}.")
    names = [str(name) for name in columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _of_dataset(data: Any) -> Iterable[Mapping[str, Any]]:
    """Rows of a `datasets.Dataset`, with the names of classes in place of their numbers."""
    names = {key: feature.names for key, feature in data.features.items() if hasattr(feature, "names")}
    for row in data:
        # a negative number is the hub's mark of a withheld label
        yield {
            key: names[key][value]
            if key in names and isinstance(value, int) and value >= 0
            else None
            if key in names
            else value
            for key, value in row.items()
        }


def _is_column(column: Any) -> bool:
    """A sequence of values, and no text."""
    return not isinstance(column, str | Mapping) and hasattr(column, "__len__") and hasattr(column, "__getitem__")


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy's numbers as numbers, what is missing as null, dates as text."""
    if type(value).__name__ == "datetime64":
        value = value.astype("datetime64[us]")  # of nanoseconds, numpy gives a number
    # Only what has no dimension: a cell of lists, as pandas reads them of parquet, is an array of any length.
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        # JSON has no such numbers, and pandas writes what is missing as NaN
        return value if math.isfinite(value) else None
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return [_plain(item) for item in (value.tolist() if hasattr(value, "tolist") else value)]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")
