"""Every margin, patience and unit of the money: what goes wrong, or is worth another price, without it."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.budget.deadline import closing_seconds_after
from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import BudgetSettings, parse_seconds
from dollartune.budget.prices import machine, parse_price, price_note
from dollartune.budget.study_budget import grew, reserve_of


@pytest.mark.parametrize(
    ("elapsed", "computing", "kept"),
    [
        (10.0, 10.0, 0.5),  # a machine of one's own
        (10.0, 20.0, 0.5),  # several threads
        (30.0, 10.0, 1.0),  # a third of a core: twice the wait for each second of computing
        (60.0, 10.0, 1.75),
        (3000.0, 10.0, 3.0),  # a process that waited for a person
        (0.2, 0.001, 0.75),  # one that has hardly begun is taken to have computed a tenth of a second
    ],
)
def test_a_busy_machine_needs_longer_to_close(elapsed: float, computing: float, kept: float) -> None:
    assert closing_seconds_after(elapsed, computing) == pytest.approx(kept)


def settings(forgetting: bool = False, inference_cost: bool = False) -> Any:
    return SimpleNamespace(evaluation=SimpleNamespace(forgetting=forgetting, inference_cost=inference_cost))


def test_the_reserve_of_a_final_trial_pays_for_the_measures_too() -> None:
    budget = BudgetSettings(seconds=100.0)
    assert reserve_of(settings(), budget) == pytest.approx(0.15)
    assert reserve_of(settings(forgetting=True), budget) == pytest.approx(0.25)
    assert reserve_of(settings(inference_cost=True), budget) == pytest.approx(0.25)
    most = BudgetSettings(seconds=100.0, reserve=0.99)
    assert reserve_of(settings(forgetting=True), most) == pytest.approx(0.9)  # a tenth is for tuning, whatever is said


def test_a_reserve_is_a_part_and_not_the_whole() -> None:
    assert BudgetSettings(seconds=1.0, reserve=0.99).reserve == 0.99
    for wrong in (1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="reserve"):
            BudgetSettings(seconds=1.0, reserve=wrong)


@pytest.mark.parametrize(
    ("factor", "larger"), [(0.5, False), (1.0, False), (1.0005, False), (1.002, True), (2.0, True)]
)
def test_a_budget_has_grown_by_more_than_rounding(factor: float, larger: bool) -> None:
    before = {"seconds": 100.0, "dollars": None, "per": "study"}
    assert grew(before, {**before, "seconds": 100.0 * factor}) == larger


def test_a_kill_loses_no_more_than_a_second() -> None:
    assert Ledger().heartbeat_seconds == 1.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2 s", 2), ("2 sec", 2), ("2 seconds", 2), ("2 m", 120), ("2 min", 120), ("2 minutes", 120), ("2 h", 7200),
     ("2 hours", 7200), ("1 hour", 3600), ("1 minute", 60), ("1 second", 1)],
)  # fmt: skip
def test_units_of_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "per_hour"),
    [("2/h", 2), ("2/hr", 2), ("2/hour", 2), ("2/m", 120), ("2/min", 120), ("2/minute", 120), ("2/s", 7200),
     ("2/sec", 7200)],
)  # fmt: skip
def test_units_of_a_price(text: str, per_hour: float) -> None:
    assert parse_price(text) == pytest.approx(per_hour)


def test_minutes_and_hours_of_a_budget() -> None:
    assert BudgetSettings.model_validate({"minutes": 2}).seconds == 120
    assert BudgetSettings.model_validate({"hours": 2}).seconds == 7200
    assert BudgetSettings(dollars=1.0).limit(1).in_seconds(2.0) == 1800
    assert str(BudgetSettings(seconds=119.0)) == "119 s per method"
    assert str(BudgetSettings(seconds=120.0)) == "2 min per method"


def test_units_of_the_table_of_machines() -> None:
    row = machine("a100-80gb")
    assert row.device_memory_bytes == 80 * 2**30
    assert row.half_flops == 312e12
    assert row.bandwidth_bytes == pytest.approx(2039e9, rel=0.06)


@pytest.mark.parametrize(("months", "said"), [(0, False), (5, False), (6, False), (7, True), (12, True)])
def test_a_price_is_old_after_half_a_year(months: int, said: bool) -> None:
    year, month = map(int, machine("a100-80gb").as_of.split("-")[:2])
    later = datetime.date(year + (month - 1 + months) // 12, (month - 1 + months) % 12 + 1, 1)
    note = price_note("a100-80gb", None, later)
    assert note is not None
    assert (f"that is {months} months ago" in note) == said
