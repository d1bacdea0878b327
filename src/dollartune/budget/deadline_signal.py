"""Ends a piece of work at the moment at which the money is spent, wherever it is just then.

A training loop asks its deadline before each step. Loading a model, measuring and evaluating have no such loop, so a
timer interrupts them: on Unix, in the main thread, between two operations. Elsewhere the block runs to its end.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dollartune.budget.ledger import BudgetSpent, Deadline

_BEGAN = time.monotonic()
_AGAIN = 0.01
"""Seconds until the next look, where the alarm came too early or in the middle of a booking."""

_PATIENCE = 0.5
"""Seconds until it rings once more, should the error have been swallowed inside."""


def closing_seconds() -> float:
    """What is kept of every account for closing the books, and as an interruption waits for the operation under way.

    On a machine that others use too everything takes longer: seconds of the clock per second of computing, since this
    process began, say how much.
    """
    elapsed = time.monotonic() - _BEGAN
    slowness = max(1.0, elapsed / max(0.1, time.process_time()))
    return 0.5 + min(2.5, 0.25 * (slowness - 1))


@contextmanager
def alarm(remaining: Callable[[], float], message: str, busy: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raises `BudgetSpent` in the block as soon as nothing remains.

    Args:
        remaining: seconds left; infinity sets no alarm. May change while the block runs.
        message: what the error says.
        busy: whether this is a bad moment, such as the middle of a booking; it is tried again at once.

    Raises:
        BudgetSpent: also at the beginning, if nothing is left then.
    """
    left = remaining()
    if left <= 0:
        raise BudgetSpent(message)
    if (
        math.isinf(left)
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        still = remaining() if not busy() else _AGAIN
        signal.setitimer(signal.ITIMER_REAL, max(_AGAIN, still) if still > 0 else _PATIENCE)
        if still <= 0:
            raise BudgetSpent(message)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(_AGAIN, left))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def until(deadline: Deadline | None, message: str) -> Iterator[None]:
    """The same for a deadline of a ledger; without one the block runs to its end."""
    if deadline is None:
        yield
        return
    with alarm(deadline.remaining, message, deadline.ledger.booking_now):
        yield
