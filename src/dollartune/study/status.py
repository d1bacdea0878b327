"""How far a study is: trials, failures, what was decided, and what was spent of its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from dollartune.budget.spending import paying_trials, spending
from dollartune.budget.totals import read_totals
from dollartune.config import StudySettings
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.budget.spending import AccountSpending
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store


@dataclass(frozen=True)
class FailedTrial:
    """A trial that failed, and why."""

    trial: str
    seed: int
    kind: str
    message: str
    traceback: str | None

    def to_json(self) -> dict[str, object]:
        """With the record's name of its class."""
        values = asdict(self)
        return {"class" if name == "kind" else name: value for name, value in values.items()}


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is."""

    study: str
    done: int
    failed: int
    planned: int
    tried: int
    seconds: float
    dollars: float
    seconds_by_category: dict[str, float]
    spent_of_budget: list[AccountSpending]
    decisions: list[str]
    failure_lines: list[str]
    """One per kind of failure."""
    failures: list[FailedTrial]

    def to_json(self) -> dict[str, object]:
        """For programs."""
        accounts = [
            {
                "who": one.account,
                "seconds": one.seconds,
                "dollars": one.dollars,
                "share": one.share_of_budget,
                "sentence": one.sentence,
            }
            for one in self.spent_of_budget
        ]  # fmt: skip
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "spent_of_budget": accounts, "failures": [one.to_json() for one in self.failures]}


def status_of(store: Store, everything: Sequence[TrialRecord] | None = None) -> StudyStatus:
    """The state of a study.

    Args:
        everything: the store's records, where they have been read already.
    """
    planned = store.planned()
    everything = list(store.records()) if everything is None else everything
    wanted = None if planned is None else set(planned)
    records = [record for record in everything if wanted is None or record.id in wanted]
    totals = read_totals(store.ledger)
    settings = settings_of(store)
    methods = accounts_of(store, everything) or list(totals.by_method)
    trials = len(records) if planned is None else len(planned)
    paying = paying_trials(planned, everything)
    spent = spending(settings.budget if settings is not None else None, totals, methods, paying)
    sentences = [record.search.sentence for record in records if record.search is not None]
    return StudyStatus(
        study=str(store.root),
        done=sum(record.status == "done" for record in records),
        failed=sum(record.status == "failed" for record in records),
        planned=trials,
        tried=sum(record.status == "tried" for record in everything),
        seconds=totals.seconds,
        dollars=totals.dollars,
        seconds_by_category=dict(totals.by_category),
        spent_of_budget=spent,
        decisions=list(dict.fromkeys(sentence for sentence in sentences if sentence)),
        failure_lines=failure_lines(records),
        failures=[
            FailedTrial(r.trial.label, r.trial.seed, r.error.kind, r.error.message, r.error.traceback)
            for r in records
            if r.error is not None
        ],
    )


def accounts_of(store: Store, everything: Sequence[TrialRecord]) -> list[str]:
    """The methods among which what is shared is divided, as the ledger does it: those that are compared, with a record or without
    one yet. Baselines have no budget of their own."""
    # folders of 0.1 say it by their records alone
    there = store.accounts() or [record.trial.group for record in everything if not record.trial.baseline]
    return list(dict.fromkeys(there))


def settings_of(store: Store) -> StudySettings | None:
    """What a study was asked; None where another version wrote it."""
    path = store.root / "study.yaml"
    if not path.is_file():
        return None
    try:
        return StudySettings.model_validate_json(path.read_text(encoding="utf8"))
    except ValueError:  # written by another version: its budget is not known then
        return None


def settings_here(store: Store) -> StudySettings:
    """The same, for going on in the folder where the study lies now.

    Raises:
        UserError: they cannot be read.
    """
    settings = settings_of(store)
    if settings is None:
        raise UserError(
            f"the study in {store.root} has no settings that can be read.", hint="dollartune run STUDY.yaml"
        )
    return settings.model_copy(update={"name": store.root.name, "output": str(store.root.parent)})


def failure_lines(records: Sequence[TrialRecord]) -> list[str]:
    """What failed, a line per kind of failure: which trials, and the first one's message.

    A budget that ends early may fail dozens of trials for one reason, which is said once.
    """
    by_kind: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.error is not None:
            by_kind.setdefault(record.error.kind, []).append(record)
    lines = []
    for kind, failed in by_kind.items():
        first = failed[0]
        assert first.error is not None
        told = f"{kind.replace('_', ' ')}: {first.error.message}"
        if len(failed) == 1:
            lines.append(f"failed: {first.trial.label}, seed {first.trial.seed}: {told}")
            continue
        counts = Counter(record.trial.label for record in failed)
        which = ", ".join(f"{label} ({count})" for label, count in counts.items())
        lines.append(
            f"failed: {len(failed)} trials ({which}). The first, {first.trial.label}, seed {first.trial.seed}: {told}"
        )
    return lines
