"""Per class: precision, recall and F1; which class is taken for which; whether probabilities mean what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OTHER = "other"
"""What an answer is called that is no label."""
BINS = 10
"""Of confidence, equally wide, as in Guo et al. 2017."""


@dataclass(frozen=True)
class ClassScore:
    """One class."""

    label: str
    precision: float | None
    """Of what was given this label, the share that has it; None where none was."""
    recall: float | None
    """Of what has it, the share that was given it."""
    f1: float
    rows: int
    """Test rows that have it."""


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence."""

    confidence: float
    """Mean probability of the predicted label."""
    accuracy: float
    rows: int


def confusion(rows: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """(expected, predicted) -> rows, of predictions as they are stored."""
    return Counter((str(row["expected"]), OTHER if row["predicted"] is None else str(row["predicted"])) for row in rows)


def class_scores(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[ClassScore]:
    """Of each label, in the order of the labels."""
    counts = confusion(rows)
    scores = []
    for label in labels:
        right = counts[label, label]
        given = sum(count for (_, predicted), count in counts.items() if predicted == label)
        has = sum(count for (expected, _), count in counts.items() if expected == label)
        f1 = 2 * right / (given + has) if given + has else 0.0
        scores.append(ClassScore(label, right / given if given else None, right / has if has else None, f1, has))
    return scores


def calibration(rows: Sequence[Mapping[str, Any]], bins: int = BINS) -> list[Bin]:
    """Predictions by confidence; empty bins are left out. Empty where no probabilities are stored."""
    grouped: dict[int, list[tuple[float, bool]]] = {}
    for row in rows:
        probabilities = row.get("probabilities")
        # An answer that is no label has no probability.
        if not probabilities or row["predicted"] not in probabilities:
            continue
        confidence = float(probabilities[row["predicted"]])
        # A probability of 1 belongs to the last bin.
        grouped.setdefault(min(bins - 1, int(confidence * bins)), []).append((confidence, bool(row["correct"])))
    return [
        Bin(sum(c for c, _ in binned) / len(binned), sum(right for _, right in binned) / len(binned), len(binned))
        for _, binned in sorted(grouped.items())
    ]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: the mean distance of accuracy from confidence, weighted by rows (Guo et al. 2017, eq. 3)."""
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.accuracy - one.confidence) for one in bins) / rows if rows else None
