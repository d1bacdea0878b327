"""Features of as many rows as there is time for: the clock decides how many, and by their share others get the same rows again.

    rows, each class's first row first    |-|------|---------|-------|----|--|                      |
                                           16 rows  a quarter of what is left, until no             the solution,
                                           first    more rows are worth a pass                      the scores

A stage takes a quarter of the time that is left at the pace of the one before: should the machine become four times as slow in
the middle of it, it still ends in time. Where all rows fit into that quarter it is one stage. Within a stage rows pass in batches
of similar length; what a stage leaves is a share of each class, so that any moment's rows are good ones to solve on.
"""

from __future__ import annotations

import bisect
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from dollartune.train.distributed import processes

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.edits import Readout
    from dollartune.train.encoding import Encoded
    from dollartune.train.features import FeatureStore

SecondsLeft = Callable[[int, float], float]
"""(rows, seconds of a row forwards) -> seconds until features of so many rows must be there: solution and scores follow."""
STAGE_PART = 1 / 4
"""Of the time that is left, a stage takes so much. A larger part would be lost where the machine becomes slow in the middle of
it; a smaller one makes more passes of fewer rows, and rows of less like length in a batch."""
FIRST_ROWS = 16
"""The first stage is of no more: how quick the machine is now is not known before, and what was measured may be far off."""


class Labelled(Protocol):
    """A row of a class."""

    @property
    def label(self) -> Hashable: ...


RowT = TypeVar("RowT", bound=Labelled)


def by_depth(rows: Sequence[Labelled]) -> list[int]:
    """Indices of rows by how far each stands in its class: each class's first row first, so that a rare one is not lost."""
    counts, before = Counter(row.label for row in rows), Counter[Hashable]()
    depths: list[float] = []
    for row in rows:
        depths.append(before[row.label] / counts[row.label])
        before[row.label] += 1
    return sorted(range(len(rows)), key=depths.__getitem__)


def rows_of(share: float, rows: int) -> int:
    """How many of the rows a share is; one at least."""
    return max(1, int(share * rows))


def two_digits(share: float) -> float:
    """A share that stands in records and is read by people; rounded down, as more rows would take longer."""
    power = 10.0 ** (1 - math.floor(math.log10(share)))
    return math.floor(share * power + 1e-9) / power  # 0.29 times 100 is a little less than 29


def share_of(rows: Sequence[RowT], share: float) -> Sequence[RowT]:
    """So much of each class's rows, in their order."""
    if share >= 1.0:
        return rows
    return [rows[index] for index in sorted(by_depth(rows)[: rows_of(share, len(rows))])]


def fresh_counts(
    store: FeatureStore, backbone: Backbone, rows: Sequence[Encoded], pooling: tuple[str, ...]
) -> list[int]:
    """Of the first n rows, n from 0 on, those whose features are not there, each content once."""
    unknown = {row.content for row in store.missing(backbone, rows, pooling)}
    counts = [0]
    for row in rows:
        counts.append(counts[-1] + (row.content in unknown))
        unknown.discard(row.content)
    return counts


def pass_in_time(
    readout: Readout,
    train: Sequence[Encoded],
    backbone: Backbone,
    attached: Attached,
    store: FeatureStore,
    batch_size: int,
    seconds_left: SecondsLeft,
    seconds_per_row: float,
) -> tuple[float, float]:
    """Passes rows through the backbone, as many as there is time for, `readout.rows_share` at most; the store keeps them.

    Args:
        train: all training rows, as the readout reads them.
        seconds_per_row: of a row forwards, as it was measured beforehand.

    Returns:
        The share of the rows whose features are there, and the seconds of a row as last seen. The first rows pass whatever the
        clock says: without them there is no adapter.
    """
    rows = [train[index] for index in by_depth(train)[: rows_of(readout.rows_share, len(train))]]
    fresh = fresh_counts(store, backbone, rows, readout.pooling)

    def most_rows(done: int, pace: float, known: float) -> int:
        """Of all rows, so many are there after a stage; `done` where none is worth a pass any more."""

        def too_many(count: int) -> bool:
            new = fresh[count] - fresh[done]
            return new * pace > STAGE_PART * seconds_left(count, known) or (not done and new > FIRST_ROWS)

        if not too_many(len(rows)):  # asked first: solving on more rows may take less (another way is taken)
            return len(rows)
        return done + bisect.bisect_left(range(done + 1, len(rows) + 1), True, key=too_many)

    share, done, paces, group = 0.0, 0, list[float](), processes()
    measured = seconds_per_row if readout.pooling else 0.0
    while True:
        # Of two stages the quicker one says what scoring will take: the first one also pays for what only first passes pay for,
        # and one that was disturbed must not end it all. The last one alone decides how large the next one is.
        known, pace = min(paces[-2:]) if len(paces) > 1 else measured, paces[-1] if paces else measured
        stop = most_rows(done, pace, known)
        if not done:
            stop = max(stop, min(len(rows), FIRST_ROWS, len({row.label for row in rows})))
        # the processes of one training have clocks of their own, and all must do what the first one says
        stop = int(group.add([stop if group.first else 0])[0])
        rounded = readout.rows_share if stop == len(rows) else two_digits(stop / len(train))
        if (stop := rows_of(rounded, len(train))) <= done:
            return share, known
        began = time.perf_counter()
        store.features(backbone, attached, rows[done:stop], readout.pooling, batch_size)
        if new := fresh[stop] - fresh[done]:
            paces.append((time.perf_counter() - began) / new)
        share, done = rounded, stop
