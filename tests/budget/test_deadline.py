"""The alarm: it rings when the money is spent, not in the middle of a booking, and again if nobody listened."""

import math
import signal
import threading
import time

import pytest

from dollartune.budget.deadline import BudgetSpent, alarm, closing_seconds, until
from dollartune.budget.ledger import Ledger


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_it_rings_where_there_is_no_loop_that_asks() -> None:
    began = time.monotonic()
    with (
        pytest.raises(BudgetSpent, match="while nothing happened"),
        alarm(lambda: 0.2 - (time.monotonic() - began), "spent while nothing happened"),
    ):
        wait(5)
    assert time.monotonic() - began < 4


def test_without_a_limit_or_after_the_block_it_is_silent() -> None:
    with alarm(lambda: math.inf, "never"):
        wait(0.02)
    with alarm(lambda: 0.05, "not now"):
        pass
    wait(0.2)
    with pytest.raises(BudgetSpent, match="nothing left"), alarm(lambda: 0.0, "nothing left"):
        raise AssertionError("the block must not begin")


def test_it_waits_for_a_better_moment() -> None:
    busy = [True]

    def work() -> None:
        wait(0.2)
        busy[0] = False
        wait(5)

    with pytest.raises(BudgetSpent), alarm(lambda: -1.0 if not busy[0] else 0.01, "now", lambda: busy[0]):
        work()
    assert not busy[0]  # not in the middle of it


def test_it_rings_again_if_the_error_was_swallowed() -> None:
    began, heard = time.monotonic(), 0
    with alarm(lambda: 0.1 - (time.monotonic() - began), "spent"):
        for _ in range(2):
            try:
                wait(5)
            except BudgetSpent:
                heard += 1
    assert heard == 2


def test_a_ledgers_deadline_ends_what_runs_and_the_account_stays_whole() -> None:
    ledger = Ledger(limit_seconds=0.3)

    def work() -> None:
        for _ in range(1_000_000):
            with ledger.book("plan"):
                ledger.remaining()

    with pytest.raises(BudgetSpent), ledger.book("evaluate"), until(ledger.deadline(0.1), "spent"):
        work()
    assert ledger.remaining() <= 0.11  # not before the deadline; how long after is the machine's affair
    assert not ledger._stack


def test_elsewhere_than_in_the_main_thread_the_block_runs_to_its_end() -> None:
    ended = []

    def work() -> None:
        with alarm(lambda: 0.01, "spent"):
            time.sleep(0.1)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]


def test_closing_takes_longer_on_a_busy_machine_but_never_long() -> None:
    assert 0.5 <= closing_seconds() <= 3.0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_a_bad_moment_is_waited_for() -> None:
    """The money is gone in the middle of a booking: the error comes after it, so that the booking is whole."""
    booking, whole, left = [True], [], [1.0]

    def busy() -> bool:
        if booking[0]:
            whole.append("asked")
            booking[0] = len(whole) < 3  # the booking goes on for two more looks
        return booking[0]

    def work() -> None:
        with alarm(lambda: left[0], "spent", busy):
            left[0] = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0.001)  # the moment at which the money is spent
            while True:
                signal.pause()

    with pytest.raises(BudgetSpent):
        work()
    assert len(whole) == 3, "not raised while it was busy"
