"""What work on another machine has spent: reported while it goes on, booked once.

    reported   |--load--|----tune----|----tune----|--tune-- x      the machine is lost here
                        checkpoint   checkpoint
    booked     |  load  |    tune    |    tune    | failure |

A machine reports running sums, so that a report which comes twice, late or never changes nothing. At every point from
which the work could go on (`keep`), what was reported until then is final; what a lost machine had reported since the
last such point is booked as `failure`. Until then the ledger counts it as running, like the time of its own clock:
deadlines see it, and a `kill -9` loses one heartbeat of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dollartune.budget.journal import Piece
from dollartune.budget.ledger import Ledger


class Entry(NamedTuple):
    """Whom seconds are booked for."""

    booking: str
    """Identifier of the booking in the other machine's own ledger."""
    category: str
    """One of `ledger.CATEGORIES`."""
    trial: str | None
    method: str | None


@dataclass(frozen=True)
class Spent:
    """What a machine reports: everything that its ledger says of one attempt at a piece of work."""

    seconds: Mapping[Entry, float] = field(default_factory=dict)
    """Since the attempt began."""
    failed: frozenset[str] = frozenset()
    """Bookings that ended with an error."""

    @classmethod
    def of(cls, ledger: Ledger) -> Spent:
        """The state of a machine's own ledger."""
        pieces, failed = ledger.pieces()
        sums: dict[Entry, float] = {}
        for piece in pieces:
            entry = Entry(piece.booking, piece.category, piece.trial, piece.method)
            sums[entry] = sums.get(entry, 0.0) + piece.seconds
        return cls(sums, failed)


class RemoteAccount:
    """The account of one attempt at a piece of work on another machine.

    Args:
        ledger: where it is booked.
        price_per_hour: dollars per hour of the part of that machine that the work occupies.
    """

    def __init__(self, ledger: Ledger, price_per_hour: float) -> None:
        self.ledger, self.price_per_hour = ledger, price_per_hour
        self.started = time.time()
        self._reported: dict[Entry, float] = {}
        self._kept: dict[Entry, float] = {}
        self._numbers: dict[Entry, int] = {}
        ledger.follow(self)

    def report(self, spent: Spent) -> None:
        """Takes over what a machine says. Sums never fall; an older report is passed over."""
        with self.ledger.lock:
            for entry, seconds in spent.seconds.items():
                self._reported[entry] = max(seconds, self._reported.get(entry, 0.0))
                if entry not in self._numbers and self._reported[entry] > self._kept.get(entry, 0.0):
                    self._numbers[entry] = self.ledger.next_number()
            for booking in spent.failed:
                self.ledger.fail(booking)

    def keep(self) -> None:
        """Everything reported so far led to something that lasts: a checkpoint or a record."""
        self._book(lost=False)

    def close(self, lost: bool) -> None:
        """The attempt is over. `lost`: what it reported since the last `keep` has led to nothing."""
        self._book(lost)
        self.ledger.unfollow(self)

    def seconds(self, method: str | None = None) -> float:
        """Seconds reported so far, of all or of one method."""
        return sum(seconds for entry, seconds in self._reported.items() if method in (None, entry.method))

    def running(self) -> list[Piece]:
        """What is reported and not final yet."""
        return [
            Piece(
                self.ledger.session, number, entry.booking, entry.category, entry.trial, entry.method,
                self._reported[entry] - self._kept.get(entry, 0.0), self.price_per_hour, self.started,
            )
            for entry, number in self._numbers.items()
        ]  # fmt: skip

    def _book(self, lost: bool) -> None:
        with self.ledger.lock:
            pieces = self.running()
            self._kept = dict(self._reported)
            self._numbers.clear()  # from here on the ledger has them, and they are not running
            for piece in pieces:
                self.ledger.append(replace(piece, category="failure") if lost else piece)
            self.ledger.heartbeat()
