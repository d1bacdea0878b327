"""What a study's records say about an adapter that lies in it: rows, seeds, the interval, the baselines of its task.

STUDY/trials/ID/adapter      an adapter
STUDY/trials/ID/record.json  its record; beside it those of all other trials
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from zipfile import BadZipFile

from dollartune.errors import UserError
from dollartune.evaluate.row_outcomes import OUTCOMES, measure_of, unpacked
from dollartune.evaluate.seed_outcomes import interval_of
from dollartune.methods.registry import methods
from dollartune.stats.intervals import wilson_sides
from dollartune.train.rows_in_time import rows_of
from dollartune.untrusted_files import read_json

RECORD = "record.json"
_SHARES = ("accuracy", "exact_match")
"""Metrics that are the share of rows that are right: without what was done on each row they have Wilson's interval (1927)."""


def study_facts(adapter: Path) -> dict[str, object]:
    """What a card says of the study; empty where the adapter does not lie in one.

    Args:
        adapter: the adapter's folder.
    """
    record = _record(adapter.resolve().parent)
    if record is None or not isinstance(record.get("test"), Mapping):
        return {}
    metric, score = str(record.get("metric")), record["test"].get("score")
    rows = dict(record.get("data") or {})
    trial = record.get("trial") or {}
    facts: dict[str, object] = {
        "metric": metric,
        "score": score,
        "rows": {"train": _trained_on(record, rows.get("train")), "test": record["test"].get("examples")},
        "seed": trial.get("seed"),
        "baselines": [one.entry() for one in _baselines(adapter.resolve().parent.parent, record)],
    }
    between = _interval(adapter.resolve().parent, metric, score, record["test"].get("examples"))
    if between is not None:
        facts["interval"] = list(between)
    return facts


def _trained_on(record: Mapping[str, Any], rows: Any) -> Any:
    """Training rows, of which something solved may have had a share."""
    share = (record.get("training") or {}).get("rows_share")
    return rows_of(share, rows) if isinstance(share, float) and isinstance(rows, int) else rows


def _interval(trial: Path, metric: str, score: Any, tested: Any) -> tuple[float, float] | None:
    """Of the score over the test rows, as the report has it for one seed; None where nothing is known of other rows."""
    measure = measure_of(metric)
    with suppress(OSError, ValueError, KeyError, TypeError, BadZipFile):  # a file cut short: the card says less then
        if measure is not None and (trial / OUTCOMES).is_file():
            found = interval_of(measure, unpacked((trial / OUTCOMES).read_bytes()))
            return None if found is None else (found.low, found.high)
    # One row says nothing of others.
    if metric not in _SHARES or not isinstance(score, float) or not isinstance(tested, int) or tested < 2:
        return None
    below, above = wilson_sides(score, float(tested), 0.95)
    return score - below, score + above


@dataclass(frozen=True)
class _Baseline:
    name: str
    scores: list[float]
    dollars: list[float | None]
    """What each of its trials cost; None without a price."""
    rows: int | None
    """Test rows of each of its trials; None where they differ or are not known."""

    def entry(self) -> dict[str, object]:
        """As it is stored with an exported adapter."""
        known = [each for each in self.dollars if each is not None]
        return {
            "name": self.name, "score": fmean(self.scores), "trials": len(self.scores), "rows": self.rows,
            # Of one trial, as the adapter's own and those of a leaderboard; one without a price, and nobody knows the mean.
            "dollars": fmean(known) if len(known) == len(self.dollars) else None,
        }  # fmt: skip


def _baselines(trials: Path, own: Mapping[str, Any]) -> list[_Baseline]:
    """Methods that train nothing, in the same cell, each with its settings; means over their trials."""
    # By what they are and not by name, so that another package's count too.
    untrained = {name: method.capabilities for name, method in methods().items() if not method.capabilities.trains}
    cell = dict(own.get("trial") or {})
    baselines: dict[str, _Baseline] = {}
    for folder in sorted(path for path in trials.iterdir() if path.is_dir()):
        record = _record(folder)
        if record is None or record.get("status") != "done" or not isinstance(record.get("test"), Mapping):
            continue
        trial = record.get("trial") or {}
        names = [str(method.get("method")) for method in trial.get("methods") or ()]
        score = record["test"].get("score")
        if len(names) != 1 or names[0] not in untrained or not isinstance(score, int | float):
            continue
        # What answers without a backbone is run once, under whichever comes first.
        keys = ("task", "scale") if untrained[names[0]].baseline else ("task", "scale", "backbone")
        if any(trial.get(key) != cell.get(key) for key in keys) or record.get("metric") != own.get("metric"):
            continue
        if _asked(trial) != _asked(cell):  # the folder keeps what an earlier version of the study file asked for
            continue
        cost = record.get("cost") or {}
        priced = float(cost.get("dollars") or 0.0) if cost.get("price_per_hour") else None
        rows = record["test"].get("examples")
        # By label: four solved examples and sixteen are two baselines, and their mean is the score of neither.
        label = str(trial.get("label") or names[0])
        before = baselines.get(label, _Baseline(label, [], [], rows))
        baselines[label] = _Baseline(
            label, [*before.scores, float(score)], [*before.dollars, priced], rows if rows == before.rows else None
        )
    return list(baselines.values())


def _asked(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What a version of a study asks of all its trials of a task, of whatever backbone."""
    conditions = trial.get("conditions") or {}
    return {name: conditions.get(name) for name in ("training", "evaluation", "data_seed", "task")}


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    except UserError:  # of another program, or cut short: a card says less then
        return None
