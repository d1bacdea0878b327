"""Ranks methods by the user's own results.

A method is good enough if its mean score is within noise of the best one's: twice the standard error of the difference
over seeds, and at least 1 % of the best score. Among those the priority decides (fewest seconds, least memory, smallest
adapter); the others follow by score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dollartune.errors import UserError

Priority = Literal["time", "memory", "quality", "serving"]
MEASURE: dict[str, tuple[str, ...]] = {
    "time": ("convergence_seconds", "seconds", "cost_usd"),
    "memory": ("peak_bytes", "trainable_parameters"),
    "serving": ("adapter_bytes", "trainable_parameters"),
    "quality": (),
}
"""Columns that answer a priority, the first that all methods have; lower is better."""


@dataclass(frozen=True)
class Measured:
    """One method in the user's study."""

    method: str
    score: float
    error: float
    """Standard error over seeds; infinity with one seed."""
    seeds: int
    n_examples: int
    measure: str | None
    cost: float
    """In the units of `measure`."""
    good_enough: bool


def records(results: Any) -> list[dict[str, Any]]:
    """Rows of a results table: a pandas frame, or mappings. Failed trials (no finite score) are left out.

    Raises:
        UserError: the columns `method` and `score` are missing.
    """
    rows: Iterable[Mapping[str, Any]] = results.to_dict("records") if hasattr(results, "to_dict") else results
    kept = []
    for row in rows:
        if "method" not in row or "score" not in row:
            raise UserError(
                f"study results need the columns 'method' and 'score', got {sorted(map(str, row))}.",
                "Take them from `dollartune results --json`.",
            )
        score = row["score"]
        if isinstance(score, int | float) and math.isfinite(score):
            kept.append(dict(row))
    return kept


def at_nearest_scale(rows: Sequence[Mapping[str, Any]], n_examples: int) -> list[Mapping[str, Any]]:
    """The rows whose number of training examples is nearest, in ratio; all of them if no row says."""

    def distance(row: Mapping[str, Any]) -> float:
        return abs(math.log(max(1, int(row["n_examples"])) / max(1, n_examples)))

    stated = [row for row in rows if row.get("n_examples") is not None]
    if not stated:
        return list(rows)
    least = min(map(distance, stated))
    return [row for row in stated if distance(row) <= least + 1e-9]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def measured(rows: Sequence[Mapping[str, Any]], priority: Priority) -> list[Measured]:
    """Methods ranked for a priority, best first."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(str(row["method"]), []).append(row)
    measure = next(
        (name for name in MEASURE[priority] if all(_finite(row.get(name)) for row in rows)), None
    )  # fmt: skip
    summaries = {method: _summary([float(row["score"]) for row in own]) for method, own in by_method.items()}
    best = max(summaries, key=lambda method: summaries[method][0])
    ranked = []
    for method, own in by_method.items():
        score, error = summaries[method]
        noise = math.hypot(error, summaries[best][1]) if math.isfinite(error + summaries[best][1]) else 0.0
        enough = summaries[best][0] - score <= max(2 * noise, 0.01 * abs(summaries[best][0]))
        cost = sum(float(row[measure]) for row in own) / len(own) if measure else 0.0
        examples = int(own[0].get("n_examples") or 0)
        ranked.append(Measured(method, score, error, len(own), examples, measure, cost, enough or method == best))
    return sorted(ranked, key=lambda one: (not one.good_enough, one.cost if one.good_enough else 0, -one.score))


def _summary(scores: Sequence[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    if len(scores) < 2:
        return mean, math.inf
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, math.sqrt(variance / len(scores))
