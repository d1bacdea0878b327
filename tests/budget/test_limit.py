"""Budgets as people write them, and what they allow."""

from __future__ import annotations

from typing import Any

import pytest

from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import BudgetSettings, Limit, in_seconds, parse_budget, parse_seconds
from dollartune.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90 s", 90), ("20 min", 1200), ("1h", 3600), ("1h30m", 5400), ("1 h 30 min", 5400), ("0.5 hours", 1800)],
)
def test_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    assert parse_budget(text).seconds == seconds


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("$1", BudgetSettings(dollars=1, per="study")),
        ("0.50 usd", BudgetSettings(dollars=0.5, per="study")),
        ("$1 each", BudgetSettings(dollars=1, per="method")),
        ("20 min per method", BudgetSettings(seconds=1200, per="method")),
        ("20 min per trial", BudgetSettings(seconds=1200, per="trial")),
        ("5 min, 2 GiB", BudgetSettings(seconds=300, per="study", memory="2 GiB")),
        # a comma between digits is one of thousands only where no size of memory follows
        ("$1,800 MB", BudgetSettings(dollars=1, per="study", memory="800 MB")),
    ],
)
def test_forms(given: str, budget: BudgetSettings) -> None:
    assert parse_budget(given) == budget


def test_who_gets_it_may_be_left_to_the_caller() -> None:
    assert parse_budget("$1", per="method").per == "method"
    assert parse_budget("$1 per study", per="method").per == "study"


@pytest.mark.parametrize("given", [1, "1", "", "soon", "$", "20 parsecs", "-5 s", "$0", "0 s", "$1 per galaxy"])
def test_refused_with_a_word(given: Any) -> None:
    with pytest.raises(UserError):
        parse_budget(given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        # as a plural of `m`, `ms` would be minutes
        ("300 ms", "is not a length of time"),
        ("5 hs", "is not a length of time"),
        ("10", "'10' has no unit: dollars, or how much time?"),
        ("1:30", "'1:30' has no unit"),
        (90, "90 has no unit"),
        ("1,5 min", "'1,5 min': a comma separates memory; write 1.5 and 1000"),
        ("$1,000", "'$1,000': a comma separates memory"),
    ],
)
def test_what_is_nearly_an_amount_is_not_read_as_another(given: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_budget(given)
    assert sentence in caught.value.message
    assert "'20 min'" in str(caught.value.hint)


def test_units_in_full_and_in_short() -> None:
    for text in ("2 h", "2 hr", "2hrs", "2 hour", "2 hours", "120 m", "120 mins", "7200 secs"):
        assert parse_seconds(text) == 7200


def test_the_limit_that_ends_first_counts() -> None:
    assert in_seconds(None, 1.0, 3.0) == pytest.approx(1200)
    assert in_seconds(60.0, 1.0, 3.0) == 60
    assert in_seconds(6000.0, 1.0, 3.0) == pytest.approx(1200)
    assert in_seconds(None, 1.0, 0.0) == float("inf"), "a machine that costs nothing"
    assert in_seconds(None, None, 3.0) == float("inf")


@pytest.mark.parametrize(("per", "seconds"), [("trial", 240.0), ("study", 60.0), ("method", 60.0)])
def test_trials_pool_what_each_of_them_gets(per: Any, seconds: float) -> None:
    limit = BudgetSettings(seconds=60, dollars=2, per=per).limit(trials=4)
    assert limit == Limit(seconds, 8.0 if per == "trial" else 2.0)


def test_a_ledger_and_a_plan_mean_the_same_by_a_budget() -> None:
    budget = BudgetSettings(dollars=2, seconds=4000)
    ledger = Ledger(price_per_hour=3.0, limit_seconds=budget.seconds, limit_dollars=budget.dollars)
    assert ledger.remaining() == budget.limit(trials=1).in_seconds(3.0) == pytest.approx(2400)


def test_a_price_alone_limits_nothing() -> None:
    assert not BudgetSettings(price="2.49/h").limited
    assert BudgetSettings(dollars=1).limited
    assert BudgetSettings(seconds=1).limited


def test_reads_well() -> None:
    assert str(BudgetSettings(dollars=1, per="method")) == "$1 per method"
    assert str(BudgetSettings(seconds=90, per="study")) == "90 s"


@pytest.mark.parametrize(("text", "size"), [
    ("5 min, 2 GiB", 2 * 2**30), ("$1, 800 MB", 800_000_000), ("90 s each,1.5gib", int(1.5 * 2**30)),
    ("$5,16GiB", 16 * 2**30),
])  # fmt: skip
def test_memory_stands_behind_the_amount(text: str, size: int) -> None:
    budget = parse_budget(text)
    assert budget.memory_bytes == size
    assert budget.limited
    assert str(budget).endswith(text.partition(",")[2].strip())


@pytest.mark.parametrize("text", ["5 min, 2", "5 min, much", "2 GiB", "5 min, 0 GiB", "5 min, 2 GiB, 3 GiB"])
def test_what_is_no_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises((UserError, ValueError)):
        parse_budget(text)


def test_memory_alone_limits_no_time() -> None:
    budget = BudgetSettings(memory="2 GiB")
    assert (budget.limited, str(budget)) == (False, "2 GiB")
    with pytest.raises(ValueError, match="2 GiB"):
        BudgetSettings(memory="plenty")
