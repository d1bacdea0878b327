"""The ledger: every second once, whatever is nested, shared, failed, killed or resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dollartune.budget import totals
from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.journal import Journal, held, open_path
from dollartune.budget.ledger import CATEGORIES, Ledger, Share
from dollartune.budget.totals import read_totals
from dollartune.errors import UserError


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def die(ledger: Ledger) -> None:
    """What the system does at `kill -9`: the file and its lock go, nothing is settled or written any more."""
    assert ledger._journal is not None
    ledger._journal._file.close()
    ledger._journal = None


def memory_ledger(**settings: object) -> tuple[Ledger, Clock]:
    clock = Clock()
    return Ledger(clock=clock, heartbeat_seconds=0, **settings), clock  # type: ignore[arg-type]


@pytest.mark.parametrize("per", ["study", "method"])
def test_what_is_kept_for_the_report_is_left_to_nobody_else(per: str) -> None:
    ledger, clock = memory_ledger(limit_seconds=100, per=per, methods=("lora", "full"), kept_seconds=6)
    with ledger.book("tune", trial="a", method="lora"):
        clock.now += 40
    whole = 100 if per == "study" else 200
    assert ledger.remaining() == whole - 40 - 6
    if per == "method":  # each bears half of what all share
        assert (ledger.remaining("lora"), ledger.remaining("full")) == (57, 97)
    ledger.add("report", 6)
    assert ledger.spent_seconds() <= whole


def test_nested_time_is_booked_once() -> None:
    ledger, clock = memory_ledger(price_per_hour=3600.0)
    with ledger.book("other"):
        clock.now += 1
        with ledger.book("train", trial="a", method="lora"):
            clock.now += 10
            with ledger.book("evaluate", trial="a", method="lora"):
                clock.now += 3
            clock.now += 2
        clock.now += 4
    sums = ledger.totals()
    assert sums.by_category == {"other": 5, "tune": 12, "evaluate": 3}
    assert sums.seconds == 20
    assert sums.dollars == 20
    assert sums.by_method == {"lora": 15}
    assert sums.shared_seconds == 5


def test_time_between_bookings_is_not_booked() -> None:
    ledger, clock = memory_ledger()
    with ledger.book("load"):
        clock.now += 1
    clock.now += 50
    with ledger.book("plan"):
        clock.now += 2
    assert ledger.totals().seconds == 3


def test_running_piece_counts_at_once() -> None:
    ledger, clock = memory_ledger(limit_seconds=30)
    with ledger.book("tune", method="lora"):
        clock.now += 10
        assert ledger.remaining() == 20
        deadline = ledger.deadline(5)
        assert deadline.remaining() == 15
        clock.now += 15
        assert deadline.expired()
        clock.now += 10
    assert ledger.remaining() == -5


def test_shares_split_a_cohort() -> None:
    ledger, clock = memory_ledger()
    with ledger.book("tune", shares=[Share("a", "lora", 3), Share("b", "bitfit", 1)]) as booking:
        clock.now += 8
        with ledger.book("evaluate", trial="a", method="lora"):
            clock.now += 1
        booking.shares = [Share("b", "bitfit")]
        clock.now += 2
    sums = ledger.totals()
    assert sums.by_trial == {"a": 6 + 1, "b": 2 + 2}
    assert sums.seconds == 11


def test_error_turns_own_time_into_failure() -> None:
    ledger, clock = memory_ledger()
    with ledger.book("other"), pytest.raises(RuntimeError), ledger.book("tune", trial="a", method="lora"):  # noqa: PT012
        clock.now += 1
        with ledger.book("evaluate", trial="a", method="lora"):
            clock.now += 2
        clock.now += 4
        raise RuntimeError("out of memory")
    assert ledger.totals().by_category == {"failure": 5, "evaluate": 2, "other": 0}


def test_a_spent_budget_is_not_a_failure() -> None:
    ledger, clock = memory_ledger(limit_seconds=1)
    with pytest.raises(BudgetSpent), ledger.book("tune", method="lora"):  # noqa: PT012
        clock.now += 2
        raise BudgetSpent("the limit is over")
    assert ledger.totals().by_category == {"tune": 2}


def test_each_method_has_its_own_limit_and_a_part_of_the_shared_time() -> None:
    ledger, clock = memory_ledger(limit_seconds=100, per="method", methods=("lora", "full"))
    with ledger.book("load"):
        clock.now += 20
    with ledger.book("tune", method="lora"):
        clock.now += 30
    assert ledger.remaining("lora") == 100 - 30 - 10
    assert ledger.remaining("full") == 90
    assert ledger.remaining() == 200 - 50


def test_money_of_machines_with_different_prices() -> None:
    ledger, clock = memory_ledger(price_per_hour=2.0, limit_dollars=1.0)
    with ledger.book("tune"):
        clock.now += 900
    ledger.add("tune", 360, method="lora", price_per_hour=4.0)
    assert ledger.spent_dollars() == pytest.approx(0.5 + 0.4)
    assert ledger.remaining() == pytest.approx(180)


def test_unknown_category_and_negative_amounts() -> None:
    ledger, _ = memory_ledger()
    with pytest.raises(UserError, match="evaluate"), ledger.book("evaluat"):  # type: ignore[arg-type]
        pass
    with pytest.raises(UserError, match="negative"):
        ledger.add("tune", -1)
    with pytest.raises(UserError, match="price_per_hour"):
        Ledger(price_per_hour=-1)


def test_resume_continues_the_account(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    for _ in range(3):
        ledger = Ledger(path=path, clock=clock, heartbeat_seconds=0, limit_seconds=100)
        with ledger, ledger.book("tune", trial="a", method="lora"):
            clock.now += 7
        clock.now += 1000
    assert read_totals(path).seconds == 21
    assert not open_path(path).exists()
    assert Ledger(path=path, heartbeat_seconds=0, limit_seconds=100).remaining() == 79


def test_a_failure_is_remembered_after_resuming(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    ledger = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    with ledger, pytest.raises(ValueError), ledger.book("tune"):  # noqa: PT012
        clock.now += 7
        raise ValueError
    assert read_totals(path).by_category == {"failure": 7}


@pytest.mark.parametrize("torn", [b"", b'{"session":"x","numb'])
def test_killed_inside_a_booking(tmp_path: Path, torn: bytes) -> None:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    dead = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    booking = dead.book("tune", trial="a", method="lora")
    booking.__enter__()
    clock.now += 5
    dead.heartbeat()
    clock.now += 3  # lost: after the last heartbeat
    die(dead)
    with path.open("ab") as file:
        file.write(torn)
    assert read_totals(path).seconds == 5
    with Ledger(path=path, clock=clock, heartbeat_seconds=0) as again:
        assert again.totals().by_method == {"lora": 5}
    with Ledger(path=path, clock=clock, heartbeat_seconds=0) as again:
        assert again.totals().seconds == 5


def test_killed_between_append_and_heartbeat(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    dead = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    with dead.book("tune"):
        clock.now += 5
        dead.heartbeat()
        running = open_path(path).read_bytes()
    open_path(path).write_bytes(running)  # the piece is in the journal, and the heartbeat file still has it
    die(dead)
    assert read_totals(path).seconds == 5
    assert Ledger(path=path, heartbeat_seconds=0).totals().seconds == 5


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path=path, heartbeat_seconds=0), pytest.raises(UserError, match="already running"):
        Ledger(path=path, heartbeat_seconds=0)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("\n{}garbage\n")
    with pytest.raises(UserError, match="line 2"):
        Ledger(path=path, heartbeat_seconds=0)


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from dollartune.budget.ledger import Ledger
ledger = Ledger(path=Path(sys.argv[1]), heartbeat_seconds=0.02)
with ledger.book("other"):
    with ledger.book("tune", trial="a", method="lora"):
        print("booked", flush=True)
        time.sleep(60)
"""


def test_kill_minus_nine(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"booked\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    elapsed = time.monotonic() - started
    with Ledger(path=path, heartbeat_seconds=0) as ledger:
        assert 0 < ledger.totals().by_method["lora"] <= elapsed
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["recovered"] for line in lines if line["category"] == "tune"] == [True]
    assert len({(line["session"], line["number"]) for line in lines}) == len(lines)


tree = st.recursive(
    st.builds(lambda seconds: ("wait", seconds), st.floats(0, 1e4)),
    lambda children: st.tuples(
        st.just("book"), st.sampled_from(CATEGORIES), st.sampled_from([None, "lora", "full"]), st.lists(children)
    ),
    max_leaves=20,
)


def walk(ledger: Ledger, clock: Clock, node: tuple) -> float:  # type: ignore[type-arg]
    if node[0] == "wait":
        clock.now += node[1]
        return float(node[1])
    with ledger.book(node[1], method=node[2]):
        return sum(walk(ledger, clock, child) for child in node[3])


@given(st.lists(tree, max_size=5))
@settings(deadline=None)
def test_sums_equal_elapsed_time(nodes: list[tuple]) -> None:  # type: ignore[type-arg]
    ledger, clock = memory_ledger(price_per_hour=7.0)
    with ledger.book("other"):
        elapsed = sum(walk(ledger, clock, node) for node in nodes)
    sums = ledger.totals()
    assert sums.seconds == pytest.approx(elapsed)
    assert sum(sums.by_category.values()) == pytest.approx(elapsed)
    assert sums.shared_seconds + sum(sums.by_method.values()) == pytest.approx(elapsed)
    assert sums.dollars == pytest.approx(elapsed * 7 / 3600)
    assert all(value >= 0 for value in sums.by_category.values())


class KilledAndResumed(RuleBasedStateMachine):
    """Any order of opening, closing, waiting, beating, dying and resuming keeps the account exact."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.jsonl"
        self.clock = Clock()
        self.expected = 0.0
        self.since_beat = 0.0
        self.start()

    def start(self) -> None:
        self.open: list = []  # type: ignore[type-arg]
        self.since_beat = 0.0
        self.ledger = Ledger(path=self.path, clock=self.clock, heartbeat_seconds=0)

    @rule(category=st.sampled_from(CATEGORIES), method=st.sampled_from([None, "lora", "full"]))
    def book(self, category: str, method: str | None) -> None:
        booking = self.ledger.book(category, method=method)  # type: ignore[arg-type]
        booking.__enter__()
        self.open.append(booking)
        self.since_beat = 0.0

    @precondition(lambda self: self.open)
    @rule()
    def leave(self) -> None:
        self.open.pop().__exit__(None, None, None)
        self.since_beat = 0.0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        if self.open:
            self.expected += seconds
            self.since_beat += seconds

    @rule()
    def beat(self) -> None:
        self.ledger.heartbeat()
        self.since_beat = 0.0

    @rule()
    def die_and_resume(self) -> None:
        die(self.ledger)
        self.expected -= self.since_beat
        self.start()

    @invariant()
    def account_is_exact(self) -> None:
        assert self.ledger.totals().seconds == pytest.approx(self.expected, abs=1e-6)
        assert read_totals(self.path).seconds == pytest.approx(self.expected - self.since_beat, abs=1e-6)

    def teardown(self) -> None:
        die(self.ledger)
        self.folder.cleanup()


TestKilledAndResumed = KilledAndResumed.TestCase
TestKilledAndResumed.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_trial_that_begins_anew_has_cost_what_it_takes_from_then_on(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    with Ledger(price_per_hour=3600.0, path=path, clock=clock, heartbeat_seconds=0) as ledger:
        ledger.begin_attempt("a")  # nothing to leave out
        with ledger.book("tune", shares=[Share("a", "lora"), Share("b", "lora")]):
            clock.now += 20
        ledger.begin_attempt("a")
        assert ledger.totals().by_trial == {"a": 0, "b": 10}, "at once, and for this trial alone"
    with Ledger(price_per_hour=7200.0, path=path, clock=clock, heartbeat_seconds=0) as again:
        with again.book("tune", trial="a", method="lora"):
            clock.now += 3
        again.append(replace(again.pieces()[0][0], session="elsewhere", trial="a", seconds=4.0, attempt=0))
        sums = again.totals()
    assert sums.by_trial == {"a": 7, "b": 10}, "another machine knows nothing of earlier attempts"
    assert sums.dollars_by_trial == {"a": 10, "b": 10}, "at the price of the moment"
    assert (sums.seconds, sums.by_method, sums.dollars_by_category) == (27, {"lora": 27}, {"tune": 30, "other": 0})
    assert read_totals(path).by_trial == sums.by_trial


def test_a_booking_belongs_to_who_paid_it(tmp_path: Path) -> None:
    """Also after a kill; not to an attempt that begins anew, nor to another study's trial of the same name."""
    path = tmp_path / "ledger.jsonl"
    clock = Clock()
    ledger = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    assert ledger.innermost() == ""
    with ledger.book("tune", trial="a", method="lora"):
        alone = ledger.innermost()
        clock.now += 2
        with ledger.book("tune", shares=[Share("a", "lora", 1.0), Share("b", "lora", 3.0)]):
            together = ledger.innermost()
            clock.now += 4
            assert ledger.shares_of("b") == {together: 0.75}, "while it runs too"
    with ledger.book("plan", method="lora"):
        planned = ledger.innermost()
        clock.now += 1
    die(ledger)
    again = Ledger(path=path, clock=clock, heartbeat_seconds=0)
    assert again.shares_of("a") == {alone: 1, together: 0.25}, "what planning took is nobody's"
    again.begin_attempt("a")
    assert {alone, together, planned}.isdisjoint(again.shares_of("a"))
    assert Ledger().shares_of("a") == {}
    with again.book("tune", trial="c", method="lora"):  # by a clock that stands still
        still = again.innermost()
    assert again.shares_of("c") == {still: 1}


# A full disk


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Ledger, Clock, Path]:
    path, clock = tmp_path / "ledger.jsonl", Clock()
    return Ledger(path=path, clock=clock, heartbeat_seconds=0), clock, path


@pytest.fixture
def running(kept: tuple[Ledger, Clock, Path]) -> tuple[Ledger, Any, Path]:
    """A ledger, its booking of five seconds that the last heartbeat knows, and its file."""
    ledger, clock, path = kept
    booking = ledger.book("tune")
    booking.__enter__()
    clock.now += 5
    ledger.heartbeat()
    return ledger, booking, path


def no_room(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_not_booked_twice(
    kept: tuple[Ledger, Clock, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, clock, _ = kept
    with ledger.book("other"):
        with monkeypatch.context() as full, pytest.raises(OSError, match="No space"), ledger.book("tune"):  # noqa: PT012
            clock.now += 5
            full.setattr(Journal, "append", no_room)
        clock.now += 1
    assert ledger.totals().seconds == 6


def test_a_heartbeat_without_room_ends_no_work(
    kept: tuple[Ledger, Clock, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, clock, path = kept
    with monkeypatch.context() as full:
        full.setattr("dollartune.budget.journal.write_atomically", no_room)
        with ledger.book("tune"):
            clock.now += 5
            ledger.heartbeat()
    ledger.close()
    assert read_totals(path).seconds == 5


def test_an_end_without_room_keeps_the_last_heartbeat_and_no_lock(
    running: tuple[Ledger, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, _, path = running
    with monkeypatch.context() as full:
        full.setattr(Journal, "append", no_room)
        with pytest.raises(OSError, match="No space"):
            ledger.close()
        with pytest.raises(OSError, match="No space") as refused:  # what ran cannot be recovered yet
            Ledger(path=path, heartbeat_seconds=0)
    with held(path):  # while the error is still there
        assert refused.value.errno == 28
    assert Ledger(path=path, heartbeat_seconds=0).totals().seconds == 5


def test_an_account_that_cannot_be_read_is_not_kept_locked(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("damaged\n")
    with pytest.raises(UserError, match="line 1") as refused:
        Ledger(path=path, heartbeat_seconds=0)
    with held(path):  # while whoever was refused is still there
        assert refused.value.hint is not None


def test_who_reads_while_a_piece_ends_sees_it_once(
    running: tuple[Ledger, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, booking, path = running
    read: list[str] = []

    def ending(name: str) -> None:
        real = getattr(totals, name)

        def reading(path: Path) -> object:
            found = real(path)
            if not read:
                booking.__exit__(None, None, None)
            read.append(name)
            return found

        monkeypatch.setattr(totals, name, reading)

    for name in ("read_lines", "read_open"):
        ending(name)
    assert read_totals(path).seconds == 5
    ledger.close()
