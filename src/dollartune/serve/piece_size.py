"""How much work fits between two steps of the texts that run, by how long work of its kind took before."""

from __future__ import annotations

import time
from collections.abc import Callable

_FRESH_SECONDS = 2.0
"""How long a measurement holds: a burst of requests shares the processor with what reads and answers them, and a piece takes
twice as long as on the quiet server that it was sized on."""


class PieceSize:
    """Sizes of pieces that take no longer than a pause may be.

    Args:
        seconds: longest pause.
        start: size of the first piece, before anything was measured.
        least: size below which pieces cost more than they help: each is a pass over all weights.
        clock: seconds.
    """

    def __init__(self, seconds: float, start: int, least: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.least = seconds, least
        self._size = float(start)
        self._clock, self._measured = clock, clock()

    def most(self) -> int:
        """Size of the next piece."""
        fresh = self._clock() - self._measured <= _FRESH_SECONDS
        return max(self.least, int(self._size if fresh else self._size / 2))

    def took(self, size: int, seconds: float) -> None:
        """Says how long a piece took."""
        self._measured = self._clock()
        # A piece may take less than the clock can tell.
        fits = size * self.seconds / max(seconds, 1e-6)
        if seconds <= self.seconds and fits < self._size and 2 * size < self._size:
            return  # a few tokens cost a whole pass: that says nothing of larger pieces, and nobody waited too long
        # Down at once, up by at most twice: a piece that was too large made others wait, one that was too small did not.
        self._size = max(float(self.least), min(fits, 2 * max(self._size, size)))
