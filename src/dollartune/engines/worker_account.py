"""What a worker on another machine spends on a job: by its own ledger where it has told it, by the driver's clock since then.

    told       |--load--|----tune----|----tune----|--?-- x      the machine is lost here
                      limit      checkpoint   checkpoint
    booked     |  load  |    tune    |    tune    | failure |

A worker tells at every point from which the work could go on. What runs since then, the study's ledger counts as running,
like the time of its own clock: limits see it, and a `kill -9` of the driver loses one heartbeat of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune.budget.journal import Piece

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.trials.trial import Trial


class WorkerAccount:
    """Books one job at one worker, and knows what is left of its time limit.

    Args:
        ledger: the study's.
        price_per_hour: dollars per hour of the part of a machine that the worker occupies.
        trials: the job's; what is lost is divided among them.
    """

    def __init__(self, ledger: Ledger, price_per_hour: float, trials: Sequence[Trial]) -> None:
        self.ledger, self.price_per_hour, self.trials = ledger, price_per_hour, trials
        self._name = uuid.uuid4().hex
        self.granted = 0.0
        """What may be spent from the last telling on, in the worker's seconds."""
        self._told, self._told_wall, self._loaded = ledger.clock(), time.time(), False
        ledger.follow(self)

    @property
    def rate(self) -> float:
        """Seconds of the worker for one second at the ledger's price: a study's time limits are given in those."""
        if self.ledger.limit_dollars is None or self.price_per_hour <= 0:
            return 1.0
        # a worker at half the price may work twice as long for the same dollars
        rate = self.ledger.price_per_hour / self.price_per_hour
        return rate if self.ledger.limit_seconds is None else min(1.0, rate)  # a limit in seconds holds at any price

    def unspent(self) -> float:
        """What is left of what was granted."""
        return max(0.0, self.granted - self._running_seconds())

    def book(self, pieces: Sequence[Piece], failed: frozenset[str]) -> None:
        """Takes over the pieces of the worker's ledger since the last telling, and its bookings that ended with an error."""
        with self.ledger.lock:
            self._told, self._told_wall, self._loaded = self.ledger.clock(), time.time(), True
            # First: a kill between the two then loses what ran, where the other order would book it twice.
            self.ledger.heartbeat()
            for piece in pieces:
                self.granted -= piece.seconds
                self.ledger.append(piece)
            for booking in failed:
                self.ledger.fail(booking)

    def close(self, lost: bool) -> None:
        """The job has ended at this worker. `lost`: what ran since the last telling has led to nothing."""
        with self.ledger.lock:
            if lost:
                for piece in self.running():
                    self.ledger.append(replace(piece, category="failure"))
            self.ledger.unfollow(self)

    def running(self) -> list[Piece]:
        """What was spent since the last telling. Its keys stay the same, so that it is recovered or booked, and not both."""
        # Loading comes first, and is shared: a method that waits for its limit must not count on what it will bear of it.
        shares = [(trial.identifier, trial.variant.group) for trial in self.trials] if self._loaded else [(None, None)]
        category, seconds = "tune" if self._loaded else "load", self._running_seconds() / len(shares)
        return [
            Piece(self._name, number, self._name, category, *share, seconds, self.price_per_hour, self._told_wall)
            for number, share in enumerate(shares)
        ]

    def _running_seconds(self) -> float:
        return max(0.0, self.ledger.clock() - self._told)
