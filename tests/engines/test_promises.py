"""Units that run side by side keep to one budget, whatever machines cost and whoever waits."""

import pytest

from dollartune.budget.ledger import Ledger
from dollartune.engines.promises import Idle, Promise, kept


def spent(ledger: Ledger, seconds: float, method: str | None = None, price: float | None = None) -> Ledger:
    ledger.add("tune", seconds, method=method, price_per_hour=price)
    return ledger


def test_while_there_is_enough_a_promise_is_kept() -> None:
    ledger = spent(Ledger(limit_seconds=100.0), 20.0)
    promises = {"a": Promise(None, 40.0, 0.0), "b": Promise(None, 40.0, 0.0)}
    assert kept(promises, ledger, Idle()) == {"a": 40.0, "b": 40.0}


def test_without_a_limit_nothing_is_cut() -> None:
    assert kept({"a": Promise(None, 40.0, 3.0)}, spent(Ledger(), 1e9), Idle(5, 10.0)) == {"a": 40.0}


def test_what_others_spend_is_taken_from_all_in_proportion() -> None:
    ledger = spent(Ledger(limit_seconds=100.0), 40.0)  # 20 more than was foreseen
    promises = {"a": Promise(None, 60.0, 0.0), "b": Promise(None, 20.0, 0.0)}
    assert kept(promises, ledger, Idle()) == {"a": pytest.approx(45.0), "b": pytest.approx(15.0)}
    spent(ledger, 70.0)
    assert kept(promises, ledger, Idle()) == {"a": 0.0, "b": 0.0}


def test_dollars_count_at_each_machines_own_price() -> None:
    ledger = spent(Ledger(price_per_hour=1.0, limit_dollars=10.0), 3600.0, price=4.0)
    promises = {"dear": Promise(None, 3600.0, 8.0), "cheap": Promise(None, 3600.0, 1.0)}
    found = kept(promises, ledger, Idle())
    assert found == {"dear": pytest.approx(2400.0), "cheap": pytest.approx(2400.0)}
    assert (found["dear"] * 8 + found["cheap"]) / 3600 == pytest.approx(6.0)


def test_the_last_unit_pays_for_the_machines_that_wait_for_it() -> None:
    ledger = Ledger(price_per_hour=1.0, limit_dollars=10.0)
    found = kept({"last": Promise(None, 36_000.0, 1.0)}, ledger, Idle(7, 7.0))
    assert found["last"] == pytest.approx(4500.0)  # eight machines for 10 dollars


def test_each_method_has_its_own_account_and_its_part_of_the_waiting() -> None:
    ledger = Ledger(limit_seconds=100.0, per="method", methods=("lora", "ia3"))
    spent(ledger, 70.0, "lora")
    promises = {"a": Promise("lora", 60.0, 0.0), "b": Promise("ia3", 60.0, 0.0)}
    assert kept(promises, ledger, Idle()) == {"a": pytest.approx(30.0), "b": 60.0}
    found = kept(promises, ledger, Idle(machines=2))
    assert found == {"a": pytest.approx(15.0), "b": pytest.approx(50.0)}
