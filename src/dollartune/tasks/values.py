"""What a value of the data says: whether there is one at all, and how it is written as text.

Every reader, guess, prompt, label and target asks these two functions, so that a file means the same to `init`, `check`,
`predict`, `evaluate` and `serve`.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from dollartune.errors import UserError


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: None, not-a-number of any type, blank text, an empty list or mapping."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list | tuple | set | Mapping):
        return not value
    # False and 0 are values.
    if isinstance(value, bytes | bool | int):
        return False
    # pandas writes NaN, NaT and NA, numpy its own NaN, Decimal a NaN: none equals itself, and NA is not even comparable.
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return False  # an array or an object: it holds something


def as_text(value: Any) -> str:
    """A value as text: nothing as nothing, lists and mappings as JSON, dates as ISO 8601; never Python's own spelling.

    Raises:
        UserError: bytes, or an object that has no text.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    # Before numbers: a bool is an int for Python.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal | Fraction | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds():g} seconds"
    if isinstance(value, list | tuple | set | Mapping):
        return json.dumps(_plain(value), ensure_ascii=False)
    # Numbers and arrays of numpy, tables' scalars.
    for name in ("tolist", "item", "as_py"):
        if hasattr(value, name):
            return as_text(getattr(value, name)())
    raise UserError(f"a value of type {type(value).__name__} cannot be written as text.", "Give texts or numbers.")


def _plain(value: Any) -> Any:
    """What JSON can hold; not-a-number becomes null, since JSON has no such number."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if is_missing(value) and not isinstance(value, list | tuple | set | Mapping):
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, Mapping):
        return {as_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set):
        return sorted((_plain(item) for item in value), key=str)  # sets have no order; the text must not change by run
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return as_text(value)
