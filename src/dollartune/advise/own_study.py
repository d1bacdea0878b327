"""Ranks methods by the user's own results.

A method is good enough if it may be the best (`may_be_best`, which a study's own paired comparison says); where that is
not known, if its mean score is within noise of the best one's: twice the standard error of the difference over seeds,
and at least 1 % of the best score. Among those the priority decides (fewest seconds, least memory, smallest adapter);
the others follow by score. A method with several settings stands with the one that did best on validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dollartune import format as numbers
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.study.results import Results

Priority = Literal["time", "memory", "quality", "serving"]
MEASURE: dict[str, tuple[str, ...]] = {
    "time": ("convergence_seconds", "seconds_to_best", "seconds", "cost_usd"),
    "memory": ("peak_bytes", "trainable_parameters", "trainable"),
    "serving": ("adapter_bytes", "trainable_parameters", "trainable"),
    "quality": (),
}
"""Columns that answer a priority, the first that all tuned methods have; lower is better. What trains nothing takes none."""


@dataclass(frozen=True)
class MethodResult:
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
    label: str | None = None
    """Its setting that did best, where the results name several."""
    compared: bool = True
    """Whether a comparison or the spread over seeds says how sure that is; else one per cent decided."""


def cost_in_words(one: MethodResult) -> str:
    """What it cost in the measure of the priority: `at its best after 38.7 s`; empty where quality alone counts."""
    if one.measure is None:
        return ""
    if one.cost == 0:
        return "nothing to train"
    if one.measure in ("convergence_seconds", "seconds_to_best"):
        return f"at its best after {numbers.seconds(one.cost)}"
    if one.measure == "seconds":
        return f"{numbers.seconds(one.cost)} a trial"
    if one.measure == "cost_usd":
        return f"{numbers.dollars(one.cost)} a trial"
    if one.measure.endswith("bytes"):
        return f"{numbers.size(one.cost)} {'at its peak' if one.measure == 'peak_bytes' else 'to store'}"
    return f"{one.cost:,.0f} trained parameters"


def rows_of(results: Results) -> list[dict[str, object]]:
    """A study's results as rows: one per finished trial, with what its comparison says of its method."""
    from dollartune.study.compare import standings
    from dollartune.study.results import trial_row
    from dollartune.study.varying_settings import shown_labels

    shown = shown_labels(results.done())
    told = {(row["task"], row["scale"], row["label"]): row["may_be_best"] for row in standings(results)}
    rows = []
    for record in results.done():
        trial, cost = record.trial, results.cost(record)
        row = {**trial_row(record, cost), "seconds": cost.seconds, "dollars": cost.known_dollars}
        if trial.ablation is not None or trial.baseline:
            continue
        row["n_examples"] = trial.scale if trial.scale is not None else record.data.train
        row["may_be_best"] = told.get((trial.task, trial.scale, shown[trial.label]))
        rows.append(row)
    return rows


def records(results: Any) -> list[dict[str, object]]:
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
            together = row.get("peak_trials")
            # The peak of trials that were tuned together is no method's own.
            kept.append(
                {**row, "peak_bytes": None} if isinstance(together, int | float) and together > 1 else dict(row)
            )
    return kept


def at_nearest_scale(rows: Sequence[Mapping[str, Any]], n_examples: int) -> list[Mapping[str, Any]]:
    """The rows whose number of training examples is nearest, in ratio; all of them if no row says."""

    def distance(row: Mapping[str, Any]) -> float:
        return abs(math.log(max(1, int(row["n_examples"])) / max(1, n_examples)))

    stated = [row for row in rows if _finite(row.get("n_examples"))]
    if not stated:
        return list(rows)
    least = min(map(distance, stated))
    # Distances are logarithms: equal ones may differ in the last digits.
    return [row for row in stated if distance(row) <= least + 1e-9]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def measured(rows: Sequence[Mapping[str, Any]], priority: Priority) -> list[MethodResult]:
    """Methods ranked for a priority, best first."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(str(row["method"]), []).append(row)
    chosen = {method: _best_setting(rows_of_method) for method, rows_of_method in by_method.items()}
    tuned = [row for rows_of_method in chosen.values() for row in rows_of_method if row.get("trainable") != 0]
    measure = next((name for name in MEASURE[priority] if tuned and all(_finite(r.get(name)) for r in tuned)), None)
    summaries = {
        method: _summary([float(row["score"]) for row in rows_of_method]) for method, rows_of_method in chosen.items()
    }
    best = max(summaries, key=lambda method: summaries[method][0])
    ranked = []
    for method, rows_of_method in chosen.items():
        score, error = summaries[method]
        told, compared = rows_of_method[0].get("may_be_best"), True
        if told is None or told != told:
            noise = math.hypot(error, summaries[best][1]) if math.isfinite(error + summaries[best][1]) else 0.0
            # Two standard errors are roughly 95 %; the 1 % is for studies with one seed and few rows, whose error is not
            # known.
            told = summaries[best][0] - score <= max(2 * noise, 0.01 * abs(summaries[best][0])) or method == best
            compared = math.isfinite(error + summaries[best][1])
        cost = (
            sum(float(row[measure]) if _finite(row.get(measure)) else 0.0 for row in rows_of_method)
            / len(rows_of_method)
            if measure
            else 0.0
        )
        seeds = int(rows_of_method[0].get("seeds") or len(rows_of_method))
        examples = int(rows_of_method[0]["n_examples"]) if _finite(rows_of_method[0].get("n_examples")) else 0
        label = str(rows_of_method[0]["label"]) if rows_of_method[0].get("label") else None
        ranked.append(MethodResult(method, score, error, seeds, examples, measure, cost, bool(told), label, compared))
    return sorted(ranked, key=lambda one: (not one.good_enough, one.cost if one.good_enough else 0, -one.score))


def _best_setting(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the setting with the best mean validation score; test scores choose only where there is none."""
    by_label: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row.get("label"), []).append(row)
    name = "validation_score" if all(_finite(row.get("validation_score")) for row in rows) else "score"
    return max(
        by_label.values(), key=lambda rows_of_label: sum(float(row[name]) for row in rows_of_label) / len(rows_of_label)
    )


def _summary(scores: Sequence[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    if len(scores) < 2:
        return mean, math.inf
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, math.sqrt(variance / len(scores))
