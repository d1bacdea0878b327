"""Numbers as people read them."""

import math

import pytest

from dollartune import format as numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.042, "0.04 s"), (4.2, "4.2 s"), (45.0, "45 s"), (125.0, "2 min 05 s"), (7200.0, "2.0 h"), (864000.0, "10.0 days"),
     (None, numbers.NONE), (math.inf, numbers.NONE)],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert numbers.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12.3, "$12.30"), (0.31, "$0.31"), (0.00312, "$0.0031"), (0.0, "$0.00"), (None, numbers.NONE)]
)
def test_dollars(value: float | None, text: str) -> None:
    assert numbers.dollars(value) == text


def test_without_a_price_nothing_was_free() -> None:
    assert numbers.money(0.0, 0.0) == "no price given"
    assert numbers.money(0.0, None) == "no price given"
    assert numbers.money(0.00312, 2.5) == "$0.0031"


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (1536, "1.54 kB"), (2.5e9, "2.5 GB")])
def test_bytes(value: float, text: str) -> None:
    assert numbers.size(value) == text
