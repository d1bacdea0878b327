"""How far a study is: trials, failures, what was decided, and what was spent of what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dollartune.budget.limit import BudgetSettings
from dollartune.budget.totals import Totals, read_totals
from dollartune.config import StudySettings
from dollartune.trials.record import TrialRecord
from dollartune.trials.store import Store


def status_of(store: Store) -> dict[str, Any]:
    """The state of a study as plain data."""
    planned = store.planned()
    everything = list(store.records())
    records = [record for record in everything if planned is None or record.id in planned]
    totals = read_totals(store.ledger)
    settings = _settings(store)
    return {
        "study": str(store.root),
        "done": sum(record.status == "done" for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "planned": len(records) if planned is None else len(planned),
        "tried": sum(record.status == "tried" for record in everything),
        "seconds": totals.seconds,
        "dollars": totals.dollars,
        "seconds_by_category": dict(totals.by_category),
        "spent_against_promised": [] if settings is None else promised(settings, totals, everything),
        "decisions": list(
            dict.fromkeys(
                record.search.sentence for record in records if record.search is not None and record.search.sentence
            )
        ),
        "failures": [
            {"trial": r.trial.label, "seed": r.trial.seed, **r.error.model_dump(by_alias=True)}
            for r in records
            if r.error is not None
        ],
    }


def promised(settings: StudySettings, totals: Totals, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Spent against promised: for the study, or for each method with its equal part of what all share."""
    budget = settings.budget
    if budget is None or (budget.seconds is None and budget.dollars is None):
        return []
    if budget.per != "method":
        times = len(records) if budget.per == "trial" else 1
        return [_line("the study", budget, times, totals.seconds, totals.dollars)]
    methods = list(dict.fromkeys(record.trial.group for record in records)) or list(totals.by_method)
    parts = max(1, len(methods))
    shared_dollars = (totals.dollars - sum(totals.dollars_by_method.values())) / parts
    return [
        _line(
            method, budget, 1,
            totals.by_method.get(method, 0.0) + totals.shared_seconds / parts,
            totals.dollars_by_method.get(method, 0.0) + shared_dollars,
        )
        for method in methods
    ]  # fmt: skip


def _line(who: str, budget: BudgetSettings, times: int, seconds: float, dollars: float) -> dict[str, Any]:
    shares, amounts = [], []
    if budget.seconds is not None:
        shares.append(seconds / (budget.seconds * times))
        amounts.append(f"{seconds:.1f} s of {budget.seconds * times:g} s")
    if budget.dollars is not None:
        shares.append(dollars / (budget.dollars * times))
        amounts.append(f"${dollars:.4f} of ${budget.dollars * times:g}")
    return {
        "who": who,
        "seconds": seconds,
        "dollars": dollars,
        "share": max(shares),
        "sentence": f"{who}: spent {' and '.join(amounts)} promised ({max(shares):.0%}).",
    }


def _settings(store: Store) -> StudySettings | None:
    path = store.root / "study.yaml"
    if not path.is_file():
        return None
    try:
        return StudySettings.model_validate_json(path.read_text(encoding="utf8"))
    except ValueError:  # written by another version: what was promised is not known then
        return None
