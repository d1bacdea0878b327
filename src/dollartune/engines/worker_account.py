"""What a worker on another machine has spent, and how long the money of all of them lasts.

    reported   |--load--|----tune----|----tune----|--tune-- x      the machine is lost here
                        checkpoint   checkpoint
    booked     |  load  |    tune    |    tune    | failure |
    waiting    everything else from start to end, where the budget pays for it, as `other`

A worker reports running sums, so that a report which comes twice, late or never changes nothing. At every point from
which the work could go on (`keep`), what was reported until then is final; what a lost machine had reported since is
booked as `failure`. Until then the ledger counts it as running, like the time of its own clock: limits see it, and a
`kill -9` of the driver loses one heartbeat of it.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from dollartune.budget.journal import Piece

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger


class Entry(NamedTuple):
    """Whom seconds are booked for."""

    booking: str
    """Identifier of the booking in the worker's own ledger."""
    category: str
    """One of `ledger.CATEGORIES`."""
    trial: str | None
    method: str | None


@dataclass(frozen=True)
class Spent:
    """What a worker reports: everything that its ledger says of one attempt at a cohort."""

    seconds: Mapping[Entry, float] = field(default_factory=dict)
    """Since the attempt began."""
    failed: frozenset[str] = frozenset()
    """Bookings that ended with an error."""

    @classmethod
    def of(cls, ledger: Ledger) -> Spent:
        """The state of a worker's own ledger."""
        pieces, failed = ledger.pieces()
        sums: dict[Entry, float] = {}
        for piece in pieces:
            entry = Entry(piece.booking, piece.category, piece.trial, piece.method)
            sums[entry] = sums.get(entry, 0.0) + piece.seconds
        return cls(sums, failed)


class WorkerAccount:
    """Books one worker, from the moment at which it is asked for until it is let go.

    Args:
        ledger: the study's.
        price_per_hour: dollars per hour of the part of a machine that the worker occupies; may be corrected until the
            first report, as it is known only where the worker has started.
        waiting: whether the budget also pays for the time in which it starts or waits.
        clock: seconds that never run backwards.
    """

    def __init__(
        self, ledger: Ledger, price_per_hour: float, waiting: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger, self.price_per_hour, self.waiting, self.clock = ledger, price_per_hour, waiting, clock
        self.began, self._wall = clock(), time.time()
        self._reported: dict[Entry, float] = {}
        self._kept: dict[Entry, float] = {}
        self._numbers: dict[Entry, int] = {}
        self._waiting_entry = Entry(f"wait-{uuid.uuid4().hex[:12]}", "other", None, None)
        self._waiting_number = ledger.next_number()
        ledger.follow(self)

    def report(self, spent: Spent) -> None:
        """Takes over what a worker says. Sums never fall; an older report is passed over."""
        with self.ledger.lock:
            for entry, seconds in spent.seconds.items():
                # Sums of one booking only grow, so the larger of two reports is the later one, in whatever order they
                # arrive.
                self._reported[entry] = max(seconds, self._reported.get(entry, 0.0))
                if entry not in self._numbers and self._reported[entry] > self._kept.get(entry, 0.0):
                    self._numbers[entry] = self.ledger.next_number()
            for booking in spent.failed:
                self.ledger.fail(booking)

    def keep(self, lost: bool = False) -> None:
        """Everything reported so far led to something that lasts: a checkpoint or a record. `lost`: it led to nothing."""
        with self.ledger.lock:
            # Before the sums are taken over, which would leave nothing to book.
            pieces = self._worked()
            self._kept = dict(self._reported)
            self._numbers.clear()  # from here on the ledger has them, and they are not running
            for piece in pieces:
                self.ledger.append(replace(piece, category="failure") if lost else piece)
            self.ledger.heartbeat()

    def close(self, lost: bool = False) -> None:
        """The worker is gone. `lost`: what it reported since the last `keep` has led to nothing."""
        with self.ledger.lock:
            self.keep(lost)
            # Booked once, at the end: only then is it known how much of its life the worker has worked.
            for piece in self._waited():
                self.ledger.append(piece)
            self.ledger.unfollow(self)
            self.ledger.heartbeat()

    def seconds(self, method: str | None = None) -> float:
        """Seconds of work reported so far, of all or of one method."""
        return sum(seconds for entry, seconds in self._reported.items() if method in (None, entry.method))

    def running(self) -> list[Piece]:
        """What is spent and not final yet."""
        return [*self._worked(), *self._waited()]

    def _worked(self) -> list[Piece]:
        sums = {entry: self._reported[entry] - self._kept.get(entry, 0.0) for entry in self._numbers}
        return [self._piece(entry, self._numbers[entry], seconds) for entry, seconds in sums.items()]

    def _waited(self) -> list[Piece]:
        """What the worker has not reported is counted as waiting until it is: no second is missing in between."""
        # By this clock and not the worker's: clocks of machines differ, and a worker that is lost has none.
        seconds = self.clock() - self.began - self.seconds()
        if not self.waiting or seconds <= 0:
            return []
        return [self._piece(self._waiting_entry, self._waiting_number, seconds)]

    def _piece(self, entry: Entry, number: int, seconds: float) -> Piece:
        return Piece(
            self.ledger.session, number, entry.booking, entry.category, entry.trial, entry.method, seconds,
            self.price_per_hour, self._wall,
        )  # fmt: skip


def seconds_per_second(ledger: Ledger, price_per_hour: float) -> float:
    """Seconds of a worker for one second at the ledger's price: time limits are given in those."""
    if ledger.limit_dollars is None or price_per_hour <= 0:
        return 1.0
    # A worker at half the price may work twice as long for the same dollars.
    rate = ledger.price_per_hour / price_per_hour
    return rate if ledger.limit_seconds is None else min(1.0, rate)  # a limit in seconds holds at any price


def clock_seconds_left(ledger: Ledger, prices_per_hour: Sequence[float]) -> float:
    """Seconds of the clock until the study's budget is spent, if workers of these prices go on until then.

    Where the budget also pays for waiting, this moment is the same whoever works or waits. So no cohort may reach beyond
    it, and nothing has to be taken back from cohorts that run when another one ends.
    """
    left = math.inf
    workers, price = max(1, len(prices_per_hour)), sum(prices_per_hour)
    if ledger.limit_seconds is not None:
        left = (ledger.limit_seconds - ledger.spent_seconds()) / workers
    if ledger.limit_dollars is not None and price > 0:
        # Together they spend `price` dollars per hour of the clock.
        left = min(left, (ledger.limit_dollars - ledger.spent_dollars()) / price * 3600)
    return left
