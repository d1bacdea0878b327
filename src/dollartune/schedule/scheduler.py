"""What searching and racing have in common: one cell of a study, its account, and a state that survives a kill.

A cell is one backbone, task and scale. Whatever was decided (what was asked, what was told, how long trials are) stands
in `searches/<name>.json` before it is acted on, so that the same command goes on with the same sequence of settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dollartune.budget.deadline_signal import closing_seconds
from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.budget.study_budget import budget_of, grew
from dollartune.config import SearchSettings, StudySettings
from dollartune.engines.base import Cohort, Engine, Timed, TimeLimit, evaluation_seconds
from dollartune.engines.display import Display
from dollartune.schedule.search_space import SearchSpace
from dollartune.trials.record import SearchFacts
from dollartune.trials.store import Store
from dollartune.trials.trial import Trial, Variant


class Host(Protocol):
    """The study that a scheduler runs in."""

    settings: StudySettings
    store: Store
    ledger: Ledger
    display: Display
    engine: Engine
    scheduler: Scheduler | None

    def decided(self, finals: Sequence[Trial]) -> None:
        """Told which final trials there are, as soon as that is known."""


class Scheduler(Protocol):
    """Whoever decides at the moment what is run: it grants the money."""

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        """See `engines.TimeLimits`."""

    def facts(self, trial: Trial) -> SearchFacts | None:
        """What a final record should say about how it was chosen."""


@dataclass(frozen=True)
class Cell:
    """One backbone, task and scale: what is compared there."""

    seeds: Mapping[str, tuple[int, ...]]
    """By method; one for methods that depend on none."""
    templates: Mapping[str, Trial]
    """By method: a trial of it here, whose variant, seed and fraction are replaced."""

    @classmethod
    def all(cls, trials: Iterable[Trial]) -> list[Cell]:
        """The cells of a study's trials, in order."""
        found: dict[tuple[int, int, int | None], list[Trial]] = {}
        for trial in trials:
            found.setdefault((trial.task_index, trial.backbone_index, trial.scale), []).append(trial)
        cells = []
        for members in found.values():
            seeds: dict[str, dict[int, None]] = {}
            templates: dict[str, Trial] = {}
            for trial in members:
                seeds.setdefault(trial.variant.group, {})[trial.seed] = None
                templates.setdefault(trial.variant.group, trial)
            cells.append(cls({group: tuple(own) for group, own in seeds.items()}, templates))
        return cells

    def trial(self, variant: Variant, seed: int, fraction: float) -> Trial:
        """A trial here; what trains nothing has no fraction."""
        template = replace(self.templates[variant.group], variant=variant, seed=seed)
        return replace(template, fraction=fraction) if template.trains else template


class State:
    """What a scheduler has decided, on disk.

    Args:
        identity: everything that must be the same for the state to be of use: the cell, the candidates, the search.
    """

    def __init__(self, store: Store, ledger: Ledger, identity: Sequence[Any]) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self.store, self.name = store, hashlib.sha256(text.encode()).hexdigest()[:12]
        promise = budget_of(ledger)
        found = store.read_state(self.name)
        self.values: dict[str, Any] = {"promise": promise}
        if found is not None and not grew(found["promise"], promise):
            self.values = found  # with more money it is searched anew, with what is known already

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def save(self, **values: Any) -> None:
        """Writes values down before they are acted on."""
        self.values.update(values)
        self.store.write_state(self.name, self.values)


def identity(cell: Cell, found: Sequence[SearchSpace], search: SearchSettings, what: str) -> list[Any]:
    """See `State`."""
    templates = {
        group: {k: v for k, v in trial.to_json().items() if k not in ("methods", "label", "seed", "fraction")}
        for group, trial in cell.templates.items()
    }
    wanted = {c.group for c in found}
    options = [[c.group, [v.methods for v in c.variants], {n: repr(s) for n, s in c.space.items()}] for c in found]
    seeds = {group: list(cell.seeds[group]) for group in sorted(wanted)}
    return [what, {g: t for g, t in templates.items() if g in wanted}, options, seeds, search.model_dump()]


class Account:
    """The money of one scheduler: a part of what a method, or the study, has.

    Args:
        method: whose money; None is the study's.
        state: where the part is written down when it is first granted.
    """

    def __init__(self, ledger: Ledger, method: str | None, state: State, part: float) -> None:
        self.ledger, self.method = ledger, method
        if state.get("seconds") is None:
            left = ledger.remaining(method)
            state.save(seconds=left * part, began=ledger.spent_seconds(method))
        self.seconds: float = state["seconds"]
        """Granted to the scheduler; infinity without a limit."""
        self._began: float = state["began"]

    def left(self) -> float:
        """Seconds that the scheduler may still spend."""
        own = self.seconds - (self.ledger.spent_seconds(self.method) - self._began)
        return min(own, self.ledger.remaining(self.method)) - closing_seconds()

    def time_limit(
        self, seconds: float, cohort: Cohort, context: Timed, settings: StudySettings, reserve: float = 0.0
    ) -> TimeLimit:
        """A time_limit for a cohort.

        Raises:
            BudgetSpent: that does not even pay for its evaluation.
        """
        needed = evaluation_seconds(cohort, context, settings)
        if needed > seconds:
            raise BudgetSpent(
                f"{max(0.0, seconds):.1f} s are left for this trial, and evaluating it alone takes about {needed:.1f} s. "
                "Give the budget more, or evaluate fewer rows (evaluation: {rows: ...})."
            )
        return TimeLimit(seconds, reserve, self.method)


def in_cohorts(trials: Sequence[Trial], size: int, purpose: Any) -> list[Cohort]:
    """Trials of one cell in cohorts, as far as they can share a pass."""
    together: dict[str, list[Trial]] = {}
    cohorts = []
    for trial in trials:
        if trial.trains and size > 1 and all(m.capabilities.mixed_rows for m in trial.variant.build()):
            together.setdefault(trial.objective, []).append(trial)
        else:
            cohorts.append(Cohort((trial,), purpose))
    for group in together.values():
        cohorts.extend(Cohort(tuple(group[i : i + size]), purpose) for i in range(0, len(group), size))
    return cohorts


def missing(store: Store, trials: Iterable[Trial], purpose: Any) -> list[Trial]:
    """Those without the record that they need. A setting that was only tried is run again as a final trial."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if store.has(trial.identifier):
            if purpose == "try" or store.read(trial.identifier).status != "tried":
                continue
            store.forget(trial.identifier)
        found.setdefault(trial.identifier, trial)
    return list(found.values())
