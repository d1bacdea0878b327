"""The moment at which the money is spent, and what ends a piece of work then, wherever it is.

A training loop asks its `Deadline` before each step. Loading a model, measuring and evaluating have no such loop, so a
timer interrupts them: on Unix, in the main thread, between two operations. Elsewhere the block runs to its end.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger

_BEGAN = time.monotonic()
AGAIN_SECONDS = 0.01
"""Until the next look, where the alarm came too early or in the middle of a booking: bookings take less than that."""
REPEAT_SECONDS = 0.5
"""Until it rings once more, should the error have been swallowed inside: time enough for one that is on its way out."""
CLOSING_SECONDS = 0.5
"""To end the operation under way (a pass, a row that is generated) and close the books, on a machine of one's own."""
CLOSING_PER_SLOWNESS = 0.25
"""More seconds for each time that this process waits as long as it computes: others use the machine."""
MOST_CLOSING_SECONDS = 3.0
"""Never more: a process that waits for a person or a download is not slowed down."""
LEAST_COMPUTING_SECONDS = 0.1
"""A process that has computed less says nothing of how busy the machine is."""


LONGEST_SECONDS = 1e8
"""Three years: a system's clock has no room for an alarm in 1e30 seconds, and whoever has so many is asked again."""


class BudgetSpent(Exception):
    """Nothing is left of a budget. A booking that it leaves counts as spent, not as failed."""


@dataclass(frozen=True)
class Deadline:
    """The moment after which training must stop for `reserve_seconds` to be left. It follows the ledger as it fills."""

    ledger: Ledger
    reserve_seconds: float
    method: str | None = None

    def remaining(self) -> float:
        """Seconds left (0 when over, infinity without a limit)."""
        return max(0.0, self.ledger.remaining(self.method) - self.reserve_seconds)

    def expired(self) -> bool:
        return self.remaining() <= 0


def closing_seconds() -> float:
    """What is kept of every account for closing the books, and as an interruption waits for the operation under way."""
    return closing_seconds_after(time.monotonic() - _BEGAN, time.process_time())


def closing_seconds_after(elapsed_seconds: float, computing_seconds: float) -> float:
    """The same for a process that has run for so long and computed for so long: their ratio says how busy the machine is."""
    slowness = max(1.0, elapsed_seconds / max(LEAST_COMPUTING_SECONDS, computing_seconds))
    return min(MOST_CLOSING_SECONDS, CLOSING_SECONDS + CLOSING_PER_SLOWNESS * (slowness - 1))


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
    # Before the block: work that is begun with nothing left is paid and leaves nothing.
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
        # Asked anew, as the ledger does not run with the clock: others book on it, and a machine may be dearer than planned.
        still = remaining() if not busy() else AGAIN_SECONDS
        again = max(AGAIN_SECONDS, still) if still > 0 else REPEAT_SECONDS
        signal.setitimer(signal.ITIMER_REAL, min(again, LONGEST_SECONDS))
        if still <= 0:
            raise BudgetSpent(message)

    # The handler first: an alarm that nobody handles would end the process.
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(max(AGAIN_SECONDS, left), LONGEST_SECONDS))
    try:
        yield
    finally:
        # And switched off before the handler goes, for the same reason.
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
