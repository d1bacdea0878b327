"""What is no value, and how a value is written: one rule for every type."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy
import pandas
import pytest

from dollartune.errors import UserError
from dollartune.tasks.values import as_text, is_missing

NOTHING = [None, "", " \n", float("nan"), Decimal("NaN"), numpy.float32("nan"), pandas.NA, pandas.NaT, [], {}, ()]


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_nothing_is_missing_and_written_as_nothing(value: Any) -> None:
    assert is_missing(value)
    assert not as_text(value).strip()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (False, "false"),
        (-1, "-1"),
        (2.5, "2.5"),
        ("None", "None"),
        (numpy.int64(3), "3"),
        (numpy.array(["a", "b"]), '["a", "b"]'),
        (Decimal("1.10"), "1.10"),
        (datetime.date(2026, 2, 1), "2026-02-01"),
        (["ä", None, float("nan"), True], '["ä", null, null, true]'),
        ({"mood": "good", "score": None}, '{"mood": "good", "score": null}'),
    ],
    ids=repr,
)
def test_values_are_written_as_json_writes_them(value: Any, text: str) -> None:
    assert not is_missing(value)
    assert as_text(value) == text


def test_what_has_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="type bytes cannot be written as text"):
        as_text(b"\xff")
