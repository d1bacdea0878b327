"""How much work fits between two steps of the texts that run, by how long work of its kind took before."""

from __future__ import annotations


class PieceSize:
    """Sizes of pieces that take no longer than a pause may be.

    Args:
        seconds: longest pause.
        start: size of the first piece, before anything was measured.
        least: size below which pieces cost more than they help: each is a pass over all weights.
    """

    def __init__(self, seconds: float, start: int, least: int = 1) -> None:
        self.seconds, self.least = seconds, least
        self._size = float(start)

    def most(self, share: float = 1.0) -> int:
        """Size of the next piece, where it may take this share of the pause."""
        return max(self.least, int(self._size * share))

    def took(self, size: int, seconds: float, share: float = 1.0) -> None:
        """Says how long a piece took that might take this share of the pause."""
        # A piece may take less than the clock can tell.
        fits = size * self.seconds / max(seconds, 1e-6)
        if seconds <= self.seconds * share and fits < self._size:
            return  # a few tokens cost a whole pass: that says nothing of larger pieces, and nobody waited too long
        # Down at once, up by at most twice: a piece that was too large made others wait, one that was too small did not.
        self._size = max(float(self.least), min(fits, 2 * max(self._size, size)))
