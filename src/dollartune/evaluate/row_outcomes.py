"""What a trial did on each test row, as columns: `outcomes.npz` beside its record.

    labels         (labels,)
    predicted      (rows,)          index into `labels`, -1 where the answer was none of them ("other")
    expected       (rows,)          likewise; these three for tasks with labels only
    probabilities  (rows, labels)   float32, normalized over the labels; where labels were scored
    groups         (rows,)          index of the group a row comes in, where the task says that rows come in groups
    statistics     (rows, k)        for measures of texts: what the measure sums, so that any resample's score is a
                                    function of the sum (`Metric.score_of_sums`)

The same is in predictions.jsonl.gz for people, with the texts. A comparison of two thousand trials needs all rows of all:
as JSON that is 20 ms a trial of 1,774 rows, as columns 1 ms, and no n-gram is counted twice. NumPy's format and not
Arrow's: numpy is needed anyway, while pyarrow takes half a second to import and 100 MB on the disk, for files of a few
kilobytes each, read whole, that its own strength (reading some columns of much data) does nothing for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dollartune import metrics
from dollartune.errors import UserError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from dollartune.metrics import Metric


OUTCOMES = "outcomes.npz"
"""The file, in the folder of a trial."""


@dataclass(frozen=True)
class RowOutcomes:
    """The columns of one trial; None where its task or its measure has none."""

    labels: tuple[str, ...] = ()
    predicted: NDArray[numpy.int16] | None = None
    expected: NDArray[numpy.int16] | None = None
    probabilities: NDArray[numpy.float32] | None = None
    statistics: NDArray[numpy.float64] | None = None
    groups: NDArray[numpy.int32] | None = None

    @property
    def rows(self) -> int:
        """How many there are; 0 without columns."""
        return next((len(one) for one in (self.expected, self.statistics) if one is not None), 0)

    def first(self, rows: int) -> RowOutcomes:
        """Of the first rows alone."""

        def cut(column: Any) -> Any:
            return None if column is None else column[:rows]

        return RowOutcomes(
            self.labels, cut(self.predicted), cut(self.expected), cut(self.probabilities), cut(self.statistics),
            cut(self.groups),
        )  # fmt: skip

    def expected_labels(self) -> list[str]:
        """The right label of each row; empty for tasks that ask for text."""
        return [] if self.expected is None else [self.labels[index] for index in self.expected]


def row_outcomes(rows: Sequence[Mapping[str, Any]], metric_name: str) -> RowOutcomes:
    """The columns of predictions.

    Args:
        rows: predictions as they are stored: `predicted`, `expected`, `correct`, `probabilities`, `references`.
        metric_name: the task's measure.
    """
    if not rows:
        return RowOutcomes()
    metric = measure_of(metric_name)
    if (metric is None or metric.takes == "texts") and any(row.get("correct") is None for row in rows):
        return RowOutcomes(statistics=_statistics(rows, metric), groups=_groups(rows))
    return replace(_of_labels(rows), groups=_groups(rows))


def _groups(rows: Sequence[Mapping[str, Any]]) -> NDArray[numpy.int32] | None:
    """Rows without a group are groups of their own; None where no row has one."""
    import numpy

    if all(row.get("group") is None for row in rows):
        return None
    index: dict[Any, int] = {}
    # A tuple, which the name of no group can equal.
    named = [row.get("group") or ("alone", number) for number, row in enumerate(rows)]
    return numpy.array([index.setdefault(name, len(index)) for name in named], numpy.int32)


def measure_of(name: str) -> Metric | None:
    """The measure of that name; None for those that have no form per row, such as a mean over tasks."""
    try:
        return metrics.get(name)
    except UserError:
        return None


def _of_labels(rows: Sequence[Mapping[str, Any]]) -> RowOutcomes:
    import numpy

    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.get("probabilities") or ()))
        names[str(row["expected"])] = None
        if row["predicted"] is not None:
            names[str(row["predicted"])] = None
    labels = tuple(names)
    index = {label: number for number, label in enumerate(labels)}
    probabilities = None
    if all(row.get("probabilities") for row in rows):
        nothing = float("nan")  # JSON's null
        probabilities = numpy.array(
            [[nothing if (p := row["probabilities"].get(label)) is None else p for label in labels] for row in rows],
            dtype=numpy.float32,
        )
    return RowOutcomes(
        labels,
        numpy.array([-1 if row["predicted"] is None else index[str(row["predicted"])] for row in rows], numpy.int16),
        numpy.array([index[str(row["expected"])] for row in rows], numpy.int16),
        probabilities,
    )


def _statistics(rows: Sequence[Mapping[str, Any]], metric: Metric | None) -> NDArray[numpy.float64] | None:
    if metric is None:
        return None
    references = [row.get("references") or row["expected"] for row in rows]
    summed = metric.statistics([row["predicted"] for row in rows], references)
    return None if summed is None else summed.values


def packed(outcomes: RowOutcomes) -> bytes:
    """The content of the file."""
    import numpy

    columns: dict[str, Any] = {"labels": numpy.array(outcomes.labels, dtype=str)}
    for name in ("predicted", "expected", "probabilities", "statistics", "groups"):
        column = getattr(outcomes, name)
        if column is not None:
            columns[name] = column
    buffer = io.BytesIO()
    numpy.savez_compressed(buffer, **columns)
    return buffer.getvalue()


def unpacked(content: bytes) -> RowOutcomes:
    """The columns in a file's content."""
    import numpy

    # An array of objects would be a pickle, which can run code; studies are passed on between people.
    with numpy.load(io.BytesIO(content), allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    return RowOutcomes(tuple(str(label) for label in columns.pop("labels")), **columns)
