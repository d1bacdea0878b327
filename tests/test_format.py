"""Numbers as people read them."""

import math
import re
from pathlib import Path

import pytest

from dollartune import format as numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.042, "0.04 s"), (4.2, "4.2 s"), (45.0, "45 s"), (125.0, "2 min 05 s"), (179.6, "3 min 00 s"), (7200.0, "2.0 h"),
     (864000.0, "10.0 days"), (None, numbers.NONE), (math.inf, numbers.NONE)],
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


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.8421, "0.842"), (0.9996, "0.9996"), (0.0004, "0.0004"), (1.0, "1.000"), (0.0, "0.000"), (1 - 1e-12, "1.000"),
     (-0.0003, "-0.0003"), (0.99996, "0.99996")],
)  # fmt: skip
def test_one_wrong_row_in_thousands_is_no_perfect_score(value: float, shown: str) -> None:
    assert numbers.score(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.842, "84.2"), (2499 / 2500, "99.96"), (1.0, "100.0"), (0.0002, "0.02")]
)
def test_nor_in_hundredths(value: float, shown: str) -> None:
    assert numbers.points(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.996, "99.6 %"), (1.002, "100.2 %"), (1.0, "100 %"), (0.9999, "< 100 %"), (1.0001, "> 100 %"), (0.84, "84 %"),
     (-0.996, "−99.6 %"), (-1.0, "−100 %"), (-0.9999, "> −100 %"), (-1.0001, "< −100 %"), (-0.05, "−5 %"), (-1.58, "−158 %"),
     (0.000001, "< 0.001 %"), (-0.000001, "> −0.001 %")],
)  # fmt: skip
def test_not_quite_all_is_not_all(value: float, shown: str) -> None:
    assert numbers.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "+0.0004"), (-0.0312, "−0.031"), (0.9996, "+0.9996"), (0.0, "±0"), (1e-9, "±0"), (None, numbers.NONE)],
)
def test_one_row_of_thousands_is_a_difference(value: float | None, text: str) -> None:
    assert numbers.change(value) == text


def test_more_digits_stay_beside_the_end_too() -> None:
    assert (numbers.score(0.84213, 4), numbers.score(0.99997, 4), numbers.score(1.0, 4)) == (
        "0.8421",
        "0.99997",
        "1.0000",
    )


def test_what_rounds_to_a_unit_is_one() -> None:
    assert [numbers.size(value) for value in (999_400, 999_600, 999_950_000)] == ["999 kB", "1 MB", "1 GB"]
    assert [numbers.short_count(value) for value in (999, 999_400, 999_700)] == ["999", "999 k", "1 M"]
    assert (numbers.rows(1), numbers.rows(2)) == ("1 training row", "2 training rows")


def test_shares_are_written_in_one_way() -> None:
    """`84 %`, never `84%`, and no 0.997 as 100: Python's own percentages round onto the ends of the scale."""
    root = Path(numbers.__file__).parent
    by_hand = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r":\.\d%\}", line)
    ]
    assert not by_hand
