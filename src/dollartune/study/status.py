"""How far a study is: trials, failures, what was decided, and what was spent of its budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dollartune.budget.spending import spending
from dollartune.budget.totals import read_totals
from dollartune.config import StudySettings

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store


def status_of(store: Store, everything: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
    """The state of a study as plain data.

    Args:
        everything: the store's records, where they have been read already.
    """
    planned = store.planned()
    everything = list(store.records()) if everything is None else everything
    wanted = None if planned is None else set(planned)
    records = [record for record in everything if wanted is None or record.id in wanted]
    totals = read_totals(store.ledger)
    settings = settings_of(store)
    methods = list(dict.fromkeys(record.trial.group for record in everything)) or list(totals.by_method)
    trials = len(records) if planned is None else len(planned)
    spent = spending(settings.budget if settings is not None else None, totals, methods, trials)
    return {
        "study": str(store.root),
        "done": sum(record.status == "done" for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "planned": trials,
        "tried": sum(record.status == "tried" for record in everything),
        "seconds": totals.seconds,
        "dollars": totals.dollars,
        "seconds_by_category": dict(totals.by_category),
        "spent_of_budget": [
            {
                "who": one.account,
                "seconds": one.seconds,
                "dollars": one.dollars,
                "share": one.share_of_budget,
                "sentence": one.sentence,
            }
            for one in spent
        ],
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


def settings_of(store: Store) -> StudySettings | None:
    """What a study was asked; None where another version wrote it."""
    path = store.root / "study.yaml"
    if not path.is_file():
        return None
    try:
        return StudySettings.model_validate_json(path.read_text(encoding="utf8"))
    except ValueError:  # written by another version: its budget is not known then
        return None
