"""Parquet files, with what pandas and the hub's `datasets` write beside their columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dollartune.errors import UserError
from dollartune.tasks.pictures import ImageBytes
from dollartune.tasks.rows import BadRows, Row

_INDEX = re.compile(r"__index_level_\d+__")  # pandas' own, where the index of a table has no name


def read_parquet(path: Path, bad: BadRows, notes: list[str]) -> list[Row]:
    """Reads a parquet file: class numbers of the hub become names, its pictures are decoded when they are needed.

    A table is typed, so no row of it can be malformed by itself.

    Raises:
        UserError: the file is damaged or is something else.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}.") from error
    table = table.drop_columns([name for name in table.column_names if _INDEX.fullmatch(name)])
    meant = _meanings(table.schema)
    rows = []
    for number, record in enumerate(table.to_pylist(), start=1):
        where = f"{path.name}, row {number}"
        rows.append(Row({name: meant[name](v, where) if name in meant else v for name, v in record.items()}, where))
    return rows


def _meanings(schema: Any) -> dict[str, Callable[[Any, str], Any]]:
    """Column -> what a stored value stands for, given the place of its row, where that is something else."""
    meant: dict[str, Callable[[Any, str], Any]] = {}
    for field in schema:
        inner = getattr(field.type, "fields", None) if str(field.type).startswith("struct") else None
        if inner is not None and {part.name for part in inner} == {"bytes", "path"}:
            meant[field.name] = _picture
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return meant
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            meant[name] = _class_of(feature["names"])
    return meant


def _picture(value: Any, where: str) -> Any:
    if value is None or value["bytes"] is None:
        return None if value is None else value["path"]
    return ImageBytes(value["path"] or where, value["bytes"])


def _class_of(names: list[str]) -> Callable[[Any, str], Any]:
    def meaning(value: Any, where: str) -> Any:
        # Tools that change a column keep its description: the value is no number of a class then.
        if not isinstance(value, int) or value >= len(names):
            return value
        # A negative number is the hub's mark of a withheld label.
        return names[value] if value >= 0 else None

    return meaning
