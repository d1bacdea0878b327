"""Work on rows that is no text (labels, embeddings), done in slices between the steps of the texts that run.

Rows of requests that ask the same thing of the same adapter share a slice; requests take turns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dollartune.serve.limits import Refused
from dollartune.serve.piece_size import PieceSize

_SIZES = 256
"""Kinds of work whose piece size is remembered."""
_START = 256
"""Size of the first slice of a kind, in tokens: a few rows."""


@dataclass(eq=False)
class RowWork:
    """Rows of one request.

    Args:
        kind: rows of equal kind may be done together, by the `run` of any of them.
        rows: what `run` takes.
        sizes: of each row, in tokens or so.
        run: rows -> what each gives, in order.
        deadline: in `time.monotonic()`; later it is not begun or gone on with.
    """

    kind: tuple[str, ...]
    rows: Sequence[Any]
    sizes: Sequence[int]
    run: Callable[[list[Any]], Sequence[Any]]
    deadline: float
    future: Future[list[Any]] = field(default_factory=Future)
    results: list[Any] = field(default_factory=list)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more, or it has ended."""
        return self.future.done()


class Slices:
    """Work that waits, in turns.

    Args:
        pause_seconds: longest time of a slice.
    """

    def __init__(self, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._waiting: deque[RowWork] = deque()
        self._sizes: dict[tuple[str, ...], PieceSize] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: RowWork) -> None:
        """Queues work; callable from any thread."""
        self._waiting.append(work)

    def step(self) -> None:
        """Does one slice."""
        now = time.monotonic()
        for work in list(self._waiting):
            if work.gone:
                self._waiting.remove(work)
            elif now > work.deadline:
                self._end(work, Refused(504, "the request took too long", "timeout"))
        if not self._waiting:
            return
        first = self._waiting[0]
        kind = first.kind
        # Kinds name adapters, which come and go; a size is learnt anew within a few slices.
        if len(self._sizes) > _SIZES:
            self._sizes.clear()
        size_of = self._sizes.setdefault(kind, PieceSize(self.pause_seconds, _START))
        taken, size = self._take(kind, size_of.most())
        start = time.monotonic()
        self._do(taken)
        size_of.took(size, time.monotonic() - start)
        if self._waiting and self._waiting[0] is first:  # to the end, so that another kind has its turn
            self._waiting.rotate(-1)

    def _take(self, kind: tuple[str, ...], most: int) -> tuple[list[tuple[RowWork, int]], int]:
        """(work, rows from where it stands) of one kind, and their size."""
        taken, size = [], 0
        for work in list(self._waiting):  # a copy: other threads add to it
            if work.kind != kind:
                continue
            count = 0
            for own in work.sizes[len(work.results) :]:
                # The first row is taken however large it is, or it would wait for ever.
                if size and size + own > most:
                    break
                size, count = size + own, count + 1
            if count:
                taken.append((work, count))
            if size >= most:
                break
        return taken, max(size, 1)

    def _do(self, taken: list[tuple[RowWork, int]]) -> None:
        rows = [row for work, count in taken for row in work.rows[len(work.results) : len(work.results) + count]]
        try:
            answers = list(taken[0][0].run(rows))
        except Exception as error:  # whose row it was is not known: each by itself, so that only that request fails
            if len(taken) == 1:
                self._end(taken[0][0], error)
                return
            for one in taken:
                self._do([one])
            return
        for work, count in taken:
            work.results += answers[:count]
            del answers[:count]
            if len(work.results) == len(work.rows):
                self._end(work)

    def _end(self, work: RowWork, error: Exception | None = None) -> None:
        self._waiting.remove(work)
        # Asked, not looked up: who waits may give up at this moment, on a thread of its own.
        if work.future.set_running_or_notify_cancel():
            if error is None:
                work.future.set_result(work.results)
            else:
                work.future.set_exception(error)

    def cancel(self) -> None:
        """Ends all that waits."""
        while self._waiting:
            self._waiting.popleft().future.cancel()
