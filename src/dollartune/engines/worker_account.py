"""What one attempt at a cohort has spent on another machine.

    reported   |--load--|----tune----|----tune----|--tune-- x      the machine is lost here
                        checkpoint   checkpoint
    booked     |  load  |    tune    |    tune    | failure |

The pieces of a worker's ledger come with its messages. At every point from which the work could go on (`keep`), those
that have come are final; what comes after the last one of a lost machine is booked as `failure`. Until then the ledger
counts them as running, like the time of its own clock: limits see them, and a `kill -9` of the driver loses one heartbeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.budget.journal import Piece
    from dollartune.budget.ledger import Ledger
    from dollartune.engines.base import TimeLimit


class WorkerAccount:
    """Books one attempt, and knows what is left of its time limit.

    Args:
        ledger: the study's.
        price_per_hour: dollars per hour of the part of a machine that the worker occupies.
    """

    def __init__(self, ledger: Ledger, price_per_hour: float) -> None:
        self.ledger, self.price_per_hour = ledger, price_per_hour
        self.limit: TimeLimit | None = None
        """What may be spent from `limit_to` on, in the worker's seconds; None before the attempt was given any."""
        self.seconds = 0.0
        """Reported so far."""
        self._limited_at = 0.0
        self._running: dict[tuple[str, str, str | None, str | None], Piece] = {}
        ledger.follow(self)

    @property
    def rate(self) -> float:
        """Seconds of the worker for one second at the ledger's price: a study's time limits are given in those."""
        if self.ledger.limit_dollars is None or self.price_per_hour <= 0:
            return 1.0
        # a worker at half the price may work twice as long for the same dollars
        rate = self.ledger.price_per_hour / self.price_per_hour
        return rate if self.ledger.limit_seconds is None else min(1.0, rate)  # a limit in seconds holds at any price

    def limit_to(self, limit: TimeLimit) -> TimeLimit:
        """Sets what may be spent from now on."""
        self.limit, self._limited_at = limit, self.seconds
        return limit

    def unspent(self) -> float:
        """What is left of the limit, in the worker's seconds."""
        return 0.0 if self.limit is None else max(0.0, self.limit.seconds - (self.seconds - self._limited_at))

    def report(self, pieces: Sequence[Piece], failed: frozenset[str]) -> None:
        """Takes over new pieces of the worker's ledger, and the bookings of it that ended with an error."""
        with self.ledger.lock:
            for piece in pieces:
                self.seconds += piece.seconds
                # one piece per booking: a journal with a line for each second of each trial would grow without bound
                key = (piece.booking, piece.category, piece.trial, piece.method)
                before = self._running.get(key)
                self._running[key] = (
                    piece if before is None else replace(before, seconds=before.seconds + piece.seconds)
                )
            for booking in failed:
                self.ledger.fail(booking)

    def keep(self, lost: bool = False) -> None:
        """Everything reported so far led to something that lasts: a checkpoint or a record. `lost`: it led to nothing."""
        with self.ledger.lock:
            pieces = self.running()
            self._running.clear()  # from here on the ledger has them, and they are not running
            for piece in pieces:
                self.ledger.append(replace(piece, category="failure") if lost else piece)
            self.ledger.heartbeat()

    def close(self, lost: bool = False) -> None:
        """The attempt has ended. `lost`: what it reported since the last `keep` has led to nothing."""
        with self.ledger.lock:
            self.keep(lost)
            self.ledger.unfollow(self)

    def running(self) -> list[Piece]:
        """What is spent and not final yet."""
        return list(self._running.values())
