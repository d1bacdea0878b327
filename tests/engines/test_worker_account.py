"""Time that workers on other machines report: every second once, whatever is repeated, lost, killed or failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.budget.ledger import Ledger, Share
from dollartune.budget.totals import read_totals
from dollartune.engines.worker_account import Entry, Spent, WorkerAccount, clock_seconds_left, seconds_per_second

TUNE = Entry("b1", "tune", "a", "lora")
LOAD = Entry("b0", "load", None, None)


def machine(seconds: dict[str, float], failed: bool = False) -> Spent:
    """What a machine with a ledger of its own says after loading, and tuning two trials of two methods together."""
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0], session="machine")
    with ledger.book("load"):
        now[0] += seconds.get("load", 0.0)
    try:
        with ledger.book("tune", shares=[Share("a", "lora"), Share("b", "ia3")]):
            now[0] += seconds.get("tune", 0.0)
            if failed:
                raise ValueError("a bug")
    except ValueError:
        pass
    return Spent.of(ledger)


def test_a_machine_reports_what_its_own_ledger_says() -> None:
    spent = machine({"load": 2.0, "tune": 6.0})
    assert {(e.category, e.trial, e.method, s) for e, s in spent.seconds.items()} == {
        ("load", None, None, 2.0), ("tune", "a", "lora", 3.0), ("tune", "b", "ia3", 3.0)
    }  # fmt: skip
    ledger = Ledger(price_per_hour=3600.0, per="method", methods=("lora", "ia3"))
    account = WorkerAccount(ledger, 1800.0, waiting=False)
    account.report(spent)
    assert ledger.spent_seconds("lora") == 4.0  # its own, and half of the loading
    assert ledger.spent_dollars() == pytest.approx(4.0)  # at the other machine's price
    account.close()
    assert ledger.totals().by_category == {"load": 2.0, "tune": 6.0}
    assert ledger.totals().by_trial == {"a": 3.0, "b": 3.0}


def test_a_report_that_comes_twice_or_late_changes_nothing() -> None:
    ledger = Ledger()
    account = WorkerAccount(ledger, 0.0, waiting=False)
    for seconds in (1.0, 5.0, 5.0, 3.0):
        account.report(Spent({TUNE: seconds}))
    assert ledger.spent_seconds() == 5.0
    account.keep()
    account.report(Spent({TUNE: 4.0}))
    account.report(Spent({TUNE: 7.0}))
    account.close()
    assert ledger.spent_seconds() == 7.0
    assert sum(piece.seconds for piece in ledger.pieces()[0]) == 7.0


def test_what_a_lost_machine_did_since_its_checkpoint_is_a_failure() -> None:
    ledger = Ledger()
    first = WorkerAccount(ledger, 0.0, waiting=False)
    first.report(Spent({LOAD: 1.0, TUNE: 10.0}))
    first.keep()
    first.report(Spent({LOAD: 1.0, TUNE: 14.0}))
    first.close(lost=True)
    again = WorkerAccount(ledger, 0.0, waiting=False)
    again.report(Spent({TUNE._replace(booking="b2"): 6.0}))
    again.close()
    sums = ledger.totals()
    assert sums.by_category == {"load": 1.0, "tune": 16.0, "failure": 4.0}
    assert sums.by_trial == {"a": 20.0}


def test_a_booking_that_fails_there_fails_here_whenever_it_was_booked() -> None:
    ledger = Ledger()
    account = WorkerAccount(ledger, 0.0, waiting=False)
    account.report(Spent({TUNE: 5.0}))
    account.keep()
    account.report(Spent({TUNE: 8.0}, frozenset({"b1"})))
    account.close()
    assert ledger.totals().by_category == {"failure": 8.0}
    failing = machine({"tune": 4.0}, failed=True)
    assert len(failing.failed) == 1


def test_waiting_for_other_machines_is_not_booked_but_what_they_spend_is() -> None:
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    with ledger.book("other"):
        now[0] += 1
        with ledger.elsewhere():
            now[0] += 50
            account = WorkerAccount(ledger, 0.0, waiting=False)
            account.report(Spent({TUNE: 30.0}))
            account.close()
            assert ledger.spent_seconds() == 31.0
        now[0] += 2
    assert ledger.totals().by_category == {"other": 3.0, "tune": 30.0}


def die(ledger: Ledger) -> None:
    """What the system does at `kill -9`: the file and its lock go, nothing is settled or written any more."""
    assert ledger._journal is not None
    ledger._journal._file.close()
    ledger._journal = None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["report", "keep", "lose", "own", "kill", "beat"]), st.integers(1, 5)), max_size=25
    )
)
def test_every_second_is_booked_once_through_kills_and_losses(tmp_path_factory: Any, events: list[Any]) -> None:
    path: Path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    now, attempts = [0.0], [0]
    expected = 0.0

    def opened() -> tuple[Ledger, Any, WorkerAccount]:
        ledger = Ledger(path=path, clock=lambda: now[0], heartbeat_seconds=0)
        own = ledger.book("other")
        own.__enter__()
        attempts[0] += 1
        return ledger, own, WorkerAccount(ledger, 0.0, waiting=False)

    ledger, own, account = opened()
    reported = 0.0
    for event, amount in events:
        if event == "report":
            reported += amount
            account.report(Spent({Entry(f"b{attempts[0]}", "tune", "a", None): reported}))
            expected += amount
        elif event == "keep":
            account.keep()
        elif event == "lose":
            account.close(lost=True)
            attempts[0] += 1
            account, reported = WorkerAccount(ledger, 0.0, waiting=False), 0.0
        elif event == "own":
            now[0] += amount
            expected += amount
            ledger.heartbeat()
        elif event == "beat":
            ledger.heartbeat()
        else:
            ledger.heartbeat()
            die(ledger)
            ledger, own, account = opened()
            reported = 0.0
        assert ledger.spent_seconds() == pytest.approx(expected)
    account.close()
    own.__exit__(None, None, None)
    ledger.close()
    assert read_totals(path).seconds == pytest.approx(expected)


def test_a_worker_is_paid_from_start_to_end_whether_it_works_or_waits() -> None:
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    account = WorkerAccount(ledger, 7200.0, waiting=True, clock=lambda: now[0])
    now[0] = 10.0
    assert ledger.spent_seconds() == 10.0  # it starts
    account.report(Spent({TUNE: 2.0}))
    assert ledger.spent_seconds() == 10.0  # eight of them waiting
    now[0] = 15.0
    assert ledger.spent_seconds() == 15.0  # also before it has said what it did in the last five
    account.report(Spent({TUNE: 7.0}))
    account.keep()
    now[0] = 20.0
    account.close()
    now[0] = 30.0
    assert ledger.totals().by_category == {"tune": 7.0, "other": 13.0}
    assert ledger.spent_dollars() == pytest.approx(40.0)
    without = WorkerAccount(ledger, 7200.0, waiting=False, clock=lambda: now[0])
    now[0] = 40.0
    without.close()
    assert ledger.spent_seconds() == 20.0


def test_workers_that_all_cost_until_the_end_share_what_is_left() -> None:
    ledger = Ledger(limit_dollars=30.0, price_per_hour=7200.0)
    assert clock_seconds_left(ledger, [3600.0, 7200.0]) == pytest.approx(10.0)
    ledger.add("tune", 3.0)
    assert clock_seconds_left(ledger, [3600.0, 7200.0]) == pytest.approx(8.0)
    assert clock_seconds_left(Ledger(limit_seconds=30.0), [3600.0, 7200.0]) == 15.0
    assert clock_seconds_left(Ledger(), [1.0]) == float("inf")


def test_a_second_at_the_ledgers_price_is_longer_on_a_cheaper_machine() -> None:
    assert seconds_per_second(Ledger(limit_dollars=1.0, price_per_hour=4.0), 2.0) == 2.0
    assert seconds_per_second(Ledger(limit_seconds=1.0, price_per_hour=4.0), 2.0) == 1.0  # seconds are seconds anywhere
    assert seconds_per_second(Ledger(limit_seconds=1.0, limit_dollars=1.0, price_per_hour=4.0), 2.0) == 1.0
    assert seconds_per_second(Ledger(limit_seconds=1.0, limit_dollars=1.0, price_per_hour=4.0), 8.0) == 0.5
