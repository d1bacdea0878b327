"""A few predictions to look at: some right, some wrong, some texts beside their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune import metrics
from dollartune.report.task_facts import shortened

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents

EACH = 3
"""Examples of each kind."""


@dataclass(frozen=True)
class Sample:
    """One prediction."""

    kind: str
    """`right`, `wrong`; for texts `highest score`, `in the middle`, `lowest score`, or `text`."""
    input: str | None
    """The prompt, where the data is at hand."""
    predicted: str
    expected: str
    probability: float | None
    """Of the predicted label."""
    generated: str | None
    """Free text beside a label."""
    score: float | None
    """Of this text alone (generation)."""
    example: str = ""
    """Identifier of the row, by which an image task finds its picture."""


@dataclass(frozen=True)
class Samples:
    """Predictions of one trial."""

    entry: BoardEntry
    seed: int
    how: str
    """How they were chosen."""
    samples: tuple[Sample, ...]


def samples(contents: Contents, board: Board, inputs: Mapping[str, str] | None = None) -> Samples | None:
    """Predictions of the best method's first seed; None where none are stored or may be shown. Of a mixture, those of
    its first task."""
    if not contents.with_rows:
        return None
    record = board.best.records[0]
    rows = contents.results.predictions(record.id)
    if not rows:
        return None
    seed = record.trial.seed
    rows = [row for row in rows if (row["correct"] is None) == (rows[0]["correct"] is None)]
    if rows[0]["correct"] is None:
        scored = _scores(board.metric, rows)
        chosen, how = _by_score(rows, scored)
    else:
        chosen, how = _by_correctness(rows)
    return Samples(board.best, seed, how, tuple(_sample(row, kind, score, inputs or {}) for row, kind, score in chosen))


Chosen = list[tuple[Mapping[str, Any], str, float | None]]


def _by_correctness(rows: Sequence[Mapping[str, Any]]) -> tuple[Chosen, str]:
    """The first right ones of different labels, and the wrong ones it was surest of."""
    right: list[Mapping[str, Any]] = []
    for row in (row for row in rows if row["correct"]):
        if len(right) < EACH and row["expected"] not in {other["expected"] for other in right}:
            right.append(row)
    wrong = sorted((row for row in rows if not row["correct"]), key=lambda row: -(_probability(row) or 0.0))[:EACH]
    how = "A correct example per label, and the most confident mistakes."
    return [*((row, "right", None) for row in right), *((row, "wrong", None) for row in wrong)], how


def _by_score(rows: Sequence[Mapping[str, Any]], scored: Sequence[float] | None) -> tuple[Chosen, str]:
    """Texts with high, middling and low scores; the first ones where texts have no score of their own."""
    if scored is None:
        return [(row, "text", None) for row in rows[: 2 * EACH]], "The first test rows."
    order = sorted(range(len(rows)), key=lambda index: -scored[index])
    middle = len(order) // 2
    kinds = dict.fromkeys(order[:2], "highest score") | dict.fromkeys(order[middle : middle + 2], "in the middle")
    # Of few texts some are in two of these groups: the higher one names them.
    kinds = {**dict.fromkeys(order[-2:], "lowest score"), **kinds}
    chosen: Chosen = [(rows[index], kinds[index], scored[index]) for index in order if index in kinds]
    return chosen, "The two texts with the highest score, two from the middle and the two with the lowest."


def _scores(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """One score per text; None where the measure is of all texts together."""
    if name not in metrics.names():
        return None
    predictions = [row["predicted"] or "" for row in rows]
    references = [row.get("references") or row["expected"] for row in rows]
    return metrics.get(name).per_example(predictions, references)


def _probability(row: Mapping[str, Any]) -> float | None:
    probability = (row.get("probabilities") or {}).get(row["predicted"])
    return None if probability is None else float(probability)


def _sample(row: Mapping[str, Any], kind: str, score: float | None, inputs: Mapping[str, str]) -> Sample:
    classified = row.get("correct") is not None
    return Sample(
        kind,
        inputs.get(row["example_id"]),
        shortened(str(row["predicted"] if row["predicted"] is not None else "other")),
        shortened(str(row["expected"])),
        _probability(row) if classified else None,
        shortened(row["generated"]) if classified and row.get("generated") is not None else None,
        score,
        str(row["example_id"]),
    )
