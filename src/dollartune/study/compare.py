"""The leaderboard: variants of one task and scale against each other, over seeds and test examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dollartune import metrics
from dollartune.methods.registry import methods
from dollartune.tasks.mixture import MEAN_OVER_TASKS
from dollartune.trials.record import DoneRecord, TrialRecord

if TYPE_CHECKING:
    from dollartune.stats import Comparison, Outcomes
    from dollartune.study.results import Results

Board = tuple[str, int | None]
"""(task, scale): what is compared with what."""


def boards(results: Results) -> dict[Board, dict[str, list[DoneRecord]]]:
    """(task, scale) -> variant label -> its records, by seed."""
    found: dict[Board, dict[str, list[DoneRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(results.done(), key=lambda r: r.trial.seed):
        trial = record.trial
        found[trial.task, trial.scale][trial.label].append(record)
    return {
        board: dict(variants)
        for board, variants in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 10**12))
    }


def outcomes(results: Results, records: Iterable[TrialRecord]) -> Outcomes | None:
    """What one variant did on each test example, seed by seed; None where predictions are not stored."""
    import numpy

    from dollartune.stats import Outcomes

    stacked, score = [], None
    name = ""
    for record in records:
        rows = results.predictions(record.id)
        if not rows:
            return None
        name = record.metric
        if name == MEAN_OVER_TASKS:
            return None  # a mean over tasks of different measures has no per-example form
        metric = metrics.get(name)
        if metric.takes == "probabilities":
            predictions: list[Any] = [row["probabilities"] for row in rows]
        else:
            predictions = [row["predicted"] for row in rows]
        references = [row.get("references") or row["expected"] for row in rows]
        statistics = metric.statistics(predictions, references)
        if statistics is None:
            return None
        stacked.append(statistics.values)
        score = statistics.score
    if score is None or len({s.shape for s in stacked}) != 1:
        return None
    if name == "accuracy":
        return Outcomes.from_values(numpy.stack([s[:, 0] for s in stacked]), "accuracy")
    lowest = metrics.get(name).lowest
    return Outcomes.from_statistics(numpy.stack(stacked), score, name, (lowest, 1.0))


def comparisons(results: Results) -> dict[Board, Comparison]:
    """The comparison on each board whose variants have predictions."""
    from dollartune.stats import compare

    found = {}
    for board, variants in boards(results).items():
        by_label = {label: outcomes(results, records) for label, records in variants.items()}
        usable = {label: outcome for label, outcome in by_label.items() if outcome is not None}
        if usable:
            found[board] = compare(usable, seedless=[label for label in usable if _seedless(variants[label])])
    return found


def _seedless(records: Sequence[TrialRecord]) -> bool:
    """Whether nothing in these trials is drawn: zero-shot prompting runs with one seed. A method that is not installed
    here counts as one that draws."""
    known = methods()
    named = [{str(method["method"]) for method in record.trial.methods} for record in records]
    return all(names and all(n in known and not known[n].capabilities.seeded for n in names) for names in named)


def standings(results: Results, compared: Mapping[Board, Comparison] | None = None) -> list[dict[str, Any]]:
    """Rows of the leaderboard, best first within each task and scale.

    Args:
        compared: what `comparisons` returned, where it is at hand already.
    """
    rows = []
    compared = comparisons(results) if compared is None else compared
    for board, variants in boards(results).items():
        comparison = compared.get(board)
        for label, records in variants.items():
            standing = comparison[label] if comparison is not None else None
            rows.append(
                {
                    "task": board[0],
                    "scale": board[1],
                    "label": label,
                    "method": records[0].trial.group,
                    "metric": records[0].metric,
                    "score": standing.score.value if standing else fmean(r.test.score for r in records),
                    "low": standing.score.low if standing else None,
                    "high": standing.score.high if standing else None,
                    "difference": standing.difference if standing else None,
                    "difference_low": standing.low if standing else None,
                    "difference_high": standing.high if standing else None,
                    "may_be_best": standing.may_be_best if standing else None,
                    "seeds": len(records),
                    "trainable": records[0].parameters.trainable,
                    "seconds": fmean(r.cost.seconds for r in records),
                    "dollars": fmean(r.cost.dollars for r in records),
                    "peak_bytes": max(r.memory.peak_bytes for r in records),
                    **_means(records),
                }
            )
    return sorted(rows, key=lambda row: (row["task"], row["scale"] or 10**12, -row["score"]))


def _means(records: Sequence[TrialRecord]) -> dict[str, float | None]:
    """Convergence, forgetting and the cost of a request, means over the seeds that have them."""
    from dollartune.study.results import convergence_columns, measure_columns

    rows = [{**convergence_columns(record.training), **measure_columns(record)} for record in records]
    found = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: fmean(values) if values else None for name, values in found.items()}
