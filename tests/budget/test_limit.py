"""Budgets as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from dollartune.budget.limit import Budget, parse_seconds
from dollartune.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90 s", 90), ("20 min", 1200), ("1h", 3600), ("1h30m", 5400), ("1 h 30 min", 5400), ("0.5 hours", 1800)],
)
def test_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    assert Budget.parse(text).seconds == seconds


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("$1", Budget(dollars=1)),
        ("0.50 usd", Budget(dollars=0.5)),
        ("$1 each", Budget(dollars=1, per="method")),
        ("20 min per method", Budget(seconds=1200, per="method")),
        ({"dollars": 1, "per": "method"}, Budget(dollars=1, per="method")),
        ({"seconds": "20 min"}, Budget(seconds=1200)),
        ({"dollars": "$2", "seconds": 60}, Budget(seconds=60, dollars=2)),
    ],
)
def test_forms(given: Any, budget: Budget) -> None:
    assert Budget.parse(given) == budget


@pytest.mark.parametrize(
    "given",
    [1, "1", "", "soon", "$", "20 parsecs", "-5 s", "$0", {"dollars": -1}, {"dollar": 1}, {}, "$1 per galaxy",
     {"dollars": True}, {"seconds": [1]}],
)  # fmt: skip
def test_refused_with_a_word(given: Any) -> None:
    with pytest.raises(UserError):
        Budget.parse(given)


def test_nearest_key_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'dollars'"):
        Budget.parse({"dollar": 1})


def test_dollars_become_seconds_at_a_price() -> None:
    assert Budget(dollars=1).limit_seconds(3.0) == pytest.approx(1200)
    assert Budget(dollars=1, seconds=60).limit_seconds(3.0) == 60
    assert Budget(dollars=1).limit_seconds(0) == float("inf")


def test_reads_well() -> None:
    assert str(Budget(dollars=1, per="method")) == "$1 per method"
    assert str(Budget(seconds=90)) == "90 s"
