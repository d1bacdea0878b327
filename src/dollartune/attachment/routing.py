"""Which rows of a batch belong to which adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dollartune.methods.edits import Rows

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter


@dataclass(frozen=True)
class Assignment:
    """Some rows of a batch and the adapter they belong to (None: the bare backbone)."""

    adapter: Adapter | None
    rows: slice
    context: Rows = field(default_factory=Rows)

    def repeated(self, times: int) -> Assignment:
        """The same for a batch in which each row is there `times` times."""
        # repeat_interleave puts the copies of a row side by side, so rows stay one slice.
        start, stop = (None if at is None else at * times for at in (self.rows.start, self.rows.stop))
        masks = {stack: mask.repeat_interleave(times, dim=0) for stack, mask in self.context.prompt_mask.items()}
        return Assignment(self.adapter, slice(start, stop), replace(self.context, prompt_mask=masks))


def covering(route: Sequence[Assignment], batch_rows: int, rows: int) -> Iterator[Assignment]:
    """The route, with rows that no adapter claims filled in, so that the pieces make up the whole batch of `rows`.

    Beam search and sampling have several rows for each of the `batch_rows` rows of the batch, next to each other.
    """
    # beam search and sampling repeat each row, next to each other
    times = rows // batch_rows if batch_rows and rows % batch_rows == 0 else 1
    route = route if times == 1 else [a.repeated(times) for a in route]
    # the usual case first: hooks ask at every module
    if len(route) == 1 and route[0].rows == slice(None):
        yield route[0]
        return
    at = 0
    for assignment in route:
        start, stop, _ = assignment.rows.indices(rows)
        if start > at:
            yield Assignment(None, slice(at, start))
        yield assignment
        at = stop
    if at < rows:
        yield Assignment(None, slice(at, rows))
