"""Time that workers on other machines spend: every second once, whatever is told, lost, killed or failed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.budget.journal import Piece
from dollartune.budget.ledger import Ledger, Share
from dollartune.budget.totals import read_totals
from dollartune.engines.feature_account import FeatureAccount
from dollartune.engines.record_writer import RecordWriter
from dollartune.engines.worker_account import WorkerAccount
from dollartune.errors import UserError
from dollartune.train.features import KnownRow
from dollartune.trials.record import TrialRecord, record_of

NOTHING: frozenset[str] = frozenset()
A: Any = SimpleNamespace(identifier="a", variant=SimpleNamespace(group="lora"))
B: Any = SimpleNamespace(identifier="b", variant=SimpleNamespace(group="ia3"))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


def test_a_machine_tells_what_its_own_ledger_says(clock: Clock) -> None:
    pieces, failed = machine({"load": 2.0, "tune": 6.0})
    assert {(p.category, p.trial, p.method, p.seconds) for p in pieces if p.seconds} == {
        ("load", None, None, 2.0), ("tune", "a", "lora", 3.0), ("tune", "b", "ia3", 3.0)
    }  # fmt: skip
    ledger = Ledger(price_per_hour=3600.0, per="method", methods=("lora", "ia3"), clock=clock)
    account = WorkerAccount(ledger, 1800.0, (A, B))
    clock.now = 8.0
    account.book(pieces, failed)
    assert ledger.spent_seconds("lora") == 4.0  # its own, and half of the loading
    assert ledger.spent_dollars() == pytest.approx(4.0)  # at the other machine's price
    account.close(lost=False)
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


def test_between_two_tellings_the_drivers_clock_counts(clock: Clock) -> None:
    ledger = Ledger(clock=clock)
    account = WorkerAccount(ledger, 3600.0, (A, B))
    clock.now = 2.0
    assert ledger.spent_seconds() == ledger.spent_dollars() == 2.0
    assert ledger.totals().by_trial == {}, "loading is nobody's"
    account.book([], NOTHING)
    clock.now = 8.0
    assert ledger.totals().by_trial == {"a": 3.0, "b": 3.0}
    account.book([tuned(5.0, 0)], NOTHING)  # it knows better
    assert ledger.spent_seconds() == 5.0
    clock.now = 9.0
    account.close(lost=False)
    assert ledger.spent_seconds() == 5.0


def test_what_a_lost_machine_did_since_its_checkpoint_is_a_failure(clock: Clock) -> None:
    ledger = Ledger(clock=clock)
    first = WorkerAccount(ledger, 0.0, (A,))
    clock.now = 10.0
    first.book([tuned(10.0, 0)], NOTHING)
    clock.now = 14.0
    first.close(lost=True)
    again = WorkerAccount(ledger, 0.0, (A,))
    clock.now = 20.0
    again.book([tuned(6.0, 0, session="other")], NOTHING)
    again.close(lost=False)
    sums = ledger.totals()
    assert {name: s for name, s in sums.by_category.items() if s} == {"tune": 16.0, "failure": 4.0}
    assert sums.by_trial == {"a": 20.0}


def test_a_booking_that_fails_there_fails_here_whenever_it_was_booked(clock: Clock) -> None:
    ledger = Ledger(clock=clock)
    account = WorkerAccount(ledger, 0.0, (A,))
    account.book([tuned(5.0, 0)], NOTHING)
    account.book([tuned(3.0, 1)], frozenset({"machine-b1"}))
    account.close(lost=False)
    assert ledger.totals().by_category == {"failure": 8.0}
    assert len(machine({"tune": 4.0}, failed=True)[1]) == 1


def test_waiting_for_other_machines_is_not_booked_but_what_they_spend_is(clock: Clock) -> None:
    ledger = Ledger(clock=clock)
    with ledger.book("other"):
        clock.now += 1
        with ledger.elsewhere():
            account = WorkerAccount(ledger, 0.0, (A,))
            clock.now += 50
            account.book([tuned(30.0, 0)], NOTHING)
            account.close(lost=False)
            assert ledger.spent_seconds() == 31.0
        clock.now += 2
    assert ledger.totals().by_category == {"other": 3.0, "tune": 30.0}


def die(ledger: Ledger) -> None:
    """What the system does at `kill -9`: the file and its lock go, nothing is settled or written any more."""
    assert ledger._journal is not None
    ledger._journal._file.close()
    ledger._journal = None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["work", "tell", "lose", "kill", "beat"]), st.integers(1, 5)), max_size=25),
)
def test_every_second_is_booked_once_through_kills_and_losses(tmp_path_factory: Any, events: list[Any]) -> None:
    path: Path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    clock, told = Clock(), 0.0

    def opened() -> tuple[Ledger, WorkerAccount]:
        ledger = Ledger(path=path, clock=clock, heartbeat_seconds=0)
        return ledger, WorkerAccount(ledger, 0.0, (A, B))

    ledger, account = opened()
    for number, (event, amount) in enumerate(events):
        if event == "work":
            clock.now += amount
        elif event == "tell":
            account.book([tuned(clock.now - told, number)], NOTHING)
            told = clock.now
        elif event == "lose":
            account.close(lost=True)
            account, told = WorkerAccount(ledger, 0.0, (A, B)), clock.now
        elif event == "beat":
            ledger.heartbeat()
        else:
            ledger.heartbeat()
            die(ledger)
            (ledger, account), told = opened(), clock.now
        assert ledger.spent_seconds() == pytest.approx(clock.now)
    account.close(lost=True)
    ledger.close()
    assert read_totals(path).seconds == pytest.approx(clock.now)


@pytest.mark.parametrize("call", ["heartbeat", "append"])
def test_a_kill_while_a_worker_tells_books_nothing_twice(
    tmp_path: Path, clock: Clock, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    account = WorkerAccount(ledger, 0.0, (A,))
    clock.now = 6.0
    ledger.heartbeat()
    works = getattr(Ledger, call)

    def killed(self: Ledger, *arguments: Any) -> None:
        works(self, *arguments)
        die(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, call, killed)
    with pytest.raises(KeyboardInterrupt):
        account.book([tuned(6.0, 0)], NOTHING)
    assert read_totals(path).seconds <= 6.0


def test_a_second_at_the_ledgers_price_is_longer_on_a_cheaper_machine() -> None:
    def rate(price_per_hour: float, **limits: float) -> float:
        return WorkerAccount(Ledger(price_per_hour=4.0, **limits), price_per_hour, (A,)).rate

    assert rate(2.0, limit_dollars=1.0) == 2.0
    assert rate(2.0, limit_seconds=1.0) == 1.0  # seconds are seconds anywhere
    assert rate(2.0, limit_seconds=1.0, limit_dollars=1.0) == 1.0
    assert rate(8.0, limit_seconds=1.0, limit_dollars=1.0) == 0.5


def test_what_is_left_of_a_grant_counts_from_the_moment_it_is_given(clock: Clock) -> None:
    account = WorkerAccount(Ledger(clock=clock), 0.0, (A,))
    assert account.unspent() == 0.0
    clock.now = 5.0
    account.book([tuned(5.0, 0)], NOTHING)
    account.granted = 20.0
    clock.now = 13.0
    assert account.unspent() == 12.0
    account.book([tuned(7.0, 1)], NOTHING)
    assert account.unspent() == 13.0
    clock.now = 30.0
    assert account.unspent() == 0.0


def test_a_record_costs_what_was_paid_at_the_time(tmp_path: Path) -> None:
    """A trial that goes on at another price keeps what its first seconds have cost."""
    for price, seconds in ((3600.0, 10.0), (7200.0, 1.0)):
        with Ledger(price_per_hour=price, path=tmp_path / "ledger.jsonl", heartbeat_seconds=0) as ledger:
            ledger.add("tune", seconds, trial="a", method="lora")
    no: Any = None
    driver: Any = SimpleNamespace(ledger=ledger)
    cost = RecordWriter(no, driver, 0).cost(A)
    assert (cost.seconds, cost.dollars, cost.price_per_hour) == (11.0, 12.0, 7200.0)


def test_features_that_an_earlier_attempt_paid_for_are_its_own(clock: Clock) -> None:
    """The worker that goes on after a loss has a ledger of its own, which begins with the bookings that were the trial's."""
    study = Ledger(clock=clock)
    study.append(tuned(6.0, 0))
    study.append(Piece("machine", 1, "machine-b1", "tune", "b", "ia3", 2.0, 0.0, 0.0))
    study.append(Piece("machine", 2, "machine-b2", "tune", "b", "ia3", 5.0, 0.0, 0.0))
    worker = Ledger(clock=clock, earlier=study.bookings_of("a"))
    assert [piece.number for piece in worker.pieces()[0]] == [0, 1], "whole bookings, and no other"
    driver: Any = SimpleNamespace(ledger=worker, paying=worker.innermost)
    rows = {KnownRow(torch.zeros(1), 4.0, name) for name in ("machine-b1", "of another study")}
    store: Any = SimpleNamespace(noting=lambda booking: nullcontext({*rows, KnownRow(torch.zeros(1), 1.0, booking())}))
    no_cache = SimpleNamespace(state=SimpleNamespace(frozen_prefix=None))
    context: Any = SimpleNamespace(features=store, attached=no_cache)
    account = FeatureAccount(driver)
    with worker.book("tune", trial="a"), account.reading(context, [A]):
        clock.now += 1.0
    assert account.seconds(A) == (9.0, 0.75 * 4.0 + 1.0)
    assert account.seconds(B) == (0.0, 0.0)


def test_an_adapter_says_what_it_and_what_it_is_made_of_has_cost() -> None:
    def facts(**more: Any) -> dict[str, Any]:
        return {"group": "lora", "label": "lora", "task": "t", "seed": 0, **more}

    costs = {"seconds": 5.0, "dollars": 2.0, "price_per_hour": 3600.0}
    second = record_of({"id": "2", "status": "tried", "cost": costs, "trial": facts(extends="gone")})

    def read(trial: str) -> TrialRecord:
        if trial != "2":
            raise UserError("there is no such trial")
        return second

    ledger = Ledger(price_per_hour=3600.0)
    ledger.add("tune", 1.0, trial="a", method="lora")
    driver: Any = SimpleNamespace(read=read, ledger=ledger)
    no: Any = None
    whole = RecordWriter(no, driver, 0).whole_cost(
        SimpleNamespace(identifier="a", extends=None, averaged_with="2")  # type: ignore[arg-type]
    )
    assert (whole.seconds, whole.dollars) == (6.0, 3.0)
