"""Time that workers on other machines report: every second once, whatever is repeated, lost, killed or failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.budget.journal import Piece
from dollartune.budget.ledger import Ledger, Share
from dollartune.budget.totals import read_totals
from dollartune.engines.base import TimeLimit
from dollartune.engines.worker_account import WorkerAccount

NOTHING: frozenset[str] = frozenset()


def tuned(seconds: float, number: int, trial: str | None = "a", session: str = "machine") -> Piece:
    """A piece of a worker's ledger."""
    return Piece(session, number, f"{session}-b1", "tune", trial, "lora", seconds, 0.0, 0.0)


def machine(seconds: dict[str, float], failed: bool = False) -> tuple[list[Piece], frozenset[str]]:
    """What a machine with a ledger of its own says after loading, and tuning two trials of two methods together."""
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0], session="machine", price_per_hour=1800.0)
    with ledger.book("load"):
        now[0] += seconds.get("load", 0.0)
    try:
        with ledger.book("tune", shares=[Share("a", "lora"), Share("b", "ia3")]):
            now[0] += seconds.get("tune", 0.0)
            if failed:
                raise ValueError("a bug")
    except ValueError:
        pass
    return ledger.settled(0)


def test_a_machine_reports_what_its_own_ledger_says() -> None:
    pieces, failed = machine({"load": 2.0, "tune": 6.0})
    assert {(p.category, p.trial, p.method, p.seconds) for p in pieces if p.seconds} == {
        ("load", None, None, 2.0), ("tune", "a", "lora", 3.0), ("tune", "b", "ia3", 3.0)
    }  # fmt: skip
    ledger = Ledger(price_per_hour=3600.0, per="method", methods=("lora", "ia3"))
    account = WorkerAccount(ledger, 1800.0)
    account.report(pieces, failed)
    assert ledger.spent_seconds("lora") == 4.0  # its own, and half of the loading
    assert ledger.spent_dollars() == pytest.approx(4.0)  # at the other machine's price
    account.close()
    assert {name: s for name, s in ledger.totals().by_category.items() if s} == {"load": 2.0, "tune": 6.0}
    assert ledger.totals().by_trial == {"a": 3.0, "b": 3.0}


def test_what_runs_is_said_in_parts_and_each_part_once() -> None:
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    with ledger.book("tune", trial="a"):
        now[0] = 4.0
        first = ledger.settled(0)[0]
        now[0] = 6.0
        second = ledger.settled(len(first))[0]
    assert [sum(piece.seconds for piece in pieces) for pieces in (first, second)] == [4.0, 2.0]
    assert len({piece.number for piece in [*first, *second]}) == len([*first, *second])


def test_a_booking_is_one_piece_between_two_checkpoints() -> None:
    ledger = Ledger()
    account = WorkerAccount(ledger, 0.0)
    for number in range(5):
        account.report([tuned(1.0, number)], NOTHING)
    assert [piece.seconds for piece in account.running()] == [5.0]
    account.keep()
    account.report([tuned(2.0, 5)], NOTHING)
    account.close()
    assert [piece.seconds for piece in ledger.pieces()[0]] == [5.0, 2.0]
    assert account.seconds == 7.0


def test_what_a_lost_machine_did_since_its_checkpoint_is_a_failure() -> None:
    ledger = Ledger()
    first = WorkerAccount(ledger, 0.0)
    first.report([tuned(10.0, 0)], NOTHING)
    first.keep()
    first.report([tuned(4.0, 1)], NOTHING)
    first.close(lost=True)
    again = WorkerAccount(ledger, 0.0)
    again.report([tuned(6.0, 0, session="other")], NOTHING)
    again.close()
    sums = ledger.totals()
    assert sums.by_category == {"tune": 16.0, "failure": 4.0}
    assert sums.by_trial == {"a": 20.0}


def test_a_booking_that_fails_there_fails_here_whenever_it_was_booked() -> None:
    ledger = Ledger()
    account = WorkerAccount(ledger, 0.0)
    account.report([tuned(5.0, 0)], NOTHING)
    account.keep()
    account.report([tuned(3.0, 1)], frozenset({"machine-b1"}))
    account.close()
    assert ledger.totals().by_category == {"failure": 8.0}
    assert len(machine({"tune": 4.0}, failed=True)[1]) == 1


def test_waiting_for_other_machines_is_not_booked_but_what_they_spend_is() -> None:
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    with ledger.book("other"):
        now[0] += 1
        with ledger.elsewhere():
            now[0] += 50
            account = WorkerAccount(ledger, 0.0)
            account.report([tuned(30.0, 0)], NOTHING)
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
        return ledger, own, WorkerAccount(ledger, 0.0)

    ledger, own, account = opened()
    for number, (event, amount) in enumerate(events):
        if event == "report":
            account.report([tuned(float(amount), number, session=f"attempt {attempts[0]}")], NOTHING)
            expected += amount
        elif event == "keep":
            account.keep()
        elif event == "lose":
            account.close(lost=True)
            attempts[0] += 1
            account = WorkerAccount(ledger, 0.0)
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
        assert ledger.spent_seconds() == pytest.approx(expected)
    account.close()
    own.__exit__(None, None, None)
    ledger.close()
    assert read_totals(path).seconds == pytest.approx(expected)


def test_a_second_at_the_ledgers_price_is_longer_on_a_cheaper_machine() -> None:
    def rate(price_per_hour: float, **limits: float) -> float:
        return WorkerAccount(Ledger(price_per_hour=4.0, **limits), price_per_hour).rate

    assert rate(2.0, limit_dollars=1.0) == 2.0
    assert rate(2.0, limit_seconds=1.0) == 1.0  # seconds are seconds anywhere
    assert rate(2.0, limit_seconds=1.0, limit_dollars=1.0) == 1.0
    assert rate(8.0, limit_seconds=1.0, limit_dollars=1.0) == 0.5


def test_what_is_left_of_a_time_limit_counts_from_the_moment_it_is_given() -> None:
    account = WorkerAccount(Ledger(), 0.0)
    assert account.unspent() == 0.0
    account.report([tuned(5.0, 0)], NOTHING)
    account.limit_to(TimeLimit(20.0))
    account.report([tuned(8.0, 1)], NOTHING)
    assert account.unspent() == 12.0
    account.report([tuned(15.0, 2)], NOTHING)
    assert account.unspent() == 0.0
