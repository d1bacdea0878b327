"""The settings that a search tried, and which of them mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dollartune.report.charts.style import logarithmic
from dollartune.study.varying_settings import varying_settings

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord

FEWEST = 3
"""Tries below which neither lines nor importances say anything."""


def tries_table(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One row per try of one method: its settings, its validation score, what it would take alone; the highest first."""
    settings = varying_settings(records)
    rows = [
        {
            **settings.get(record.trial.label, {}),
            "validation": record.validation_score,
            "seconds": record.cost.plus().seconds,
            "trial": record.id,
        }
        for record in records
        if record.validation_score is not None
    ]
    return sorted(rows, key=lambda row: -row["validation"])


def importances(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Setting -> the share of the scores' variance that it explains alone, the most telling first.

    Epsilon squared (Kelley 1935) over thirds of its range, or over its names: eta squared less what so many groups of so few
    tries explain by chance; with a group for each try that is everything, and the setting is left out. Settings are not tried
    independently of each other, so shares may add to more than 1.
    """
    rows = tries_table(records)
    if len(rows) < FEWEST:
        return {}
    scores = [float(row["validation"]) for row in rows]
    middle = fmean(scores)
    whole = sum((score - middle) ** 2 for score in scores)
    shares = {}
    for key in dict.fromkeys(key for row in rows for key in row if key not in ("seconds", "trial", "validation")):
        groups: dict[Any, list[float]] = {}
        for place, score in zip(places([row.get(key) for row in rows]), scores, strict=True):
            groups.setdefault(None if place is None else min(2, int(place * 3)), []).append(score)
        if len(groups) == len(scores):
            continue
        within = sum((score - fmean(group)) ** 2 for group in groups.values() for score in group)
        unexplained = within / whole * (len(scores) - 1) / (len(scores) - len(groups)) if whole else 1.0
        shares[key] = max(0.0, 1.0 - unexplained)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def places(values: Sequence[Any]) -> list[float | None]:
    """Each value's place between the lowest (0) and the highest (1): numbers by value, or by logarithm where they span decades;
    anything else by the order of first appearance."""
    known = [value for value in values if value is not None]
    numeric = bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if not numeric:
        names = sorted({in_words(value) for value in known})
        return [None if value is None else names.index(in_words(value)) / max(1, len(names) - 1) for value in values]
    measure = math.log if logarithmic([float(value) for value in known], 20) else float
    low, high = (measure(float(bound)) for bound in (min(known), max(known)))
    return [None if value is None else (measure(float(value)) - low) / (high - low or 1.0) for value in values]


def in_words(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
