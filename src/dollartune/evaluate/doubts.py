"""Which rows to look at next: labels that a finished model doubts, and rows without a label that would teach it most.

doubt of a label      1 - p(given label): near 1 the model would bet on another (Northcutt 2021, "self-confidence")
worth of a label      1 - (p1 - p2), the two likeliest labels: near 1 the model cannot decide (margin sampling, Settles 2009)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.evaluate.predict import pictures_of, predict_rows
from dollartune.tasks.examples import nothing_to_read
from dollartune.tasks.labels import match_label
from dollartune.tasks.values import is_missing

if TYPE_CHECKING:
    from dollartune.evaluate.predict import Tuned


@dataclass(frozen=True)
class Doubt:
    """One row that is worth a look."""

    row: int
    """Number of the row in its file, from 0."""
    given: str | None
    """Its label; None where it has none."""
    predicted: str
    doubt: float
    """From 0 to 1."""
    text: str


@dataclass(frozen=True)
class Doubts:
    """Rows by doubt, the most doubtful first."""

    labelled: tuple[Doubt, ...]
    unlabelled: tuple[Doubt, ...]
    unknown: tuple[str, ...]
    """Labels of the rows that the adapter does not know."""
    unread: tuple[int, ...] = ()
    """Rows without anything to read, of which a model can say nothing."""


def doubts(
    tuned: Tuned,
    rows: Sequence[Mapping[str, Any]],
    label: str | None = None,
    batch_size: int = 32,
    data: Path = Path("rows"),
) -> Doubts:
    """Ranks rows by how much the adapter doubts their label, and those without one by how little it can decide.

    Args:
        label: column with the label; by default the one that the adapter was tuned with.
        data: the file that the rows come from: pictures lie beside it.

    Raises:
        UserError: the adapter writes texts, or the rows lack a column of its prompt.
    """
    task = tuned.task
    if task.kind != "classification":
        raise UserError("only an adapter that chooses among labels can doubt one; this one writes texts.")
    known = dict.fromkeys(name for row in rows for name in row)
    if label is not None and rows and label not in known:
        # else every row would be one without a label
        raise UserError(f"{data} has no column {label!r} with labels; it has {list(known)}.{nearest(label, known)}")
    column = label or task.answer_column or "label"
    columns = task.template.columns if task.template is not None else ("image",)
    missing = [name for name in columns if rows and name not in known and task.modality != "image"]
    if missing:
        raise UserError(
            f"the adapter's prompt needs column {missing[0]!r}; {data} has {list(known)}.{nearest(missing[0], known)}"
        )
    pictures = pictures_of(rows, data) if task.modality == "image" else []
    problems = [one.problem for one in pictures] or [nothing_to_read(columns, row) for row in rows]
    unread = [number for number, problem in enumerate(problems) if problem is not None]
    read = [number for number, problem in enumerate(problems) if problem is None]
    asked = [{**rows[n], "image": pictures[n].picture} if pictures else rows[n] for n in read]
    predictions = predict_rows(tuned, asked, batch_size)
    labelled: list[Doubt] = []
    unlabelled: list[Doubt] = []
    unknown: list[str] = []
    for number, prediction in zip(read, predictions, strict=True):
        row = rows[number]
        probabilities = prediction.probabilities or {}
        best, *rest = sorted(probabilities.values(), reverse=True)
        written = row.get(column)
        given = None if is_missing(written) else match_label(written, task.labels)
        text = pictures[number].name if pictures else " | ".join(str(row[name]) for name in columns)
        if is_missing(written):
            margin = best - (rest[0] if rest else 0.0)
            unlabelled.append(Doubt(number, None, str(prediction.predicted), 1 - margin, text))
        elif given is None:
            unknown.append(str(written))
        else:
            labelled.append(Doubt(number, given, str(prediction.predicted), 1 - probabilities[given], text))
    return Doubts(
        tuple(sorted(labelled, key=_order)), tuple(sorted(unlabelled, key=_order)), tuple(dict.fromkeys(unknown)),
        tuple(unread),
    )  # fmt: skip


def _order(one: Doubt) -> tuple[float, int]:
    return -one.doubt, one.row
