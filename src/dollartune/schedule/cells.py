"""Cells of a study (one backbone, task and scale each), and schedulers that work through them one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dollartune.engines.base import Cohort, EvaluationCost, Purpose, TimeLimit
from dollartune.schedule.scheduler import CellScheduler, Scheduler

if TYPE_CHECKING:
    from dollartune.config import SearchSettings
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.record import SearchFacts, TrialRecord
    from dollartune.trials.trial import Trial, Variant


@dataclass(frozen=True)
class Cell:
    """One backbone, task and scale: what is compared there."""

    seeds: Mapping[str, tuple[int, ...]]
    """By method; one for methods that depend on none."""
    templates: Mapping[str, Trial]
    """By method: a trial of it here, whose variant, seed and fraction are replaced."""
    _made: dict[tuple[Variant, int, float], Trial] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Schedulers ask for the same trials at each step, and a trial keeps its hash and what its methods are."""

    @classmethod
    def all(cls, trials: Iterable[Trial]) -> list[Cell]:
        """The cells of a study's trials, in order."""
        members: dict[tuple[int, int, int | None], list[Trial]] = {}
        for trial in trials:
            members.setdefault((trial.task_index, trial.backbone_index, trial.scale), []).append(trial)
        cells = []
        for inside in members.values():
            seeds: dict[str, dict[int, None]] = {}
            templates: dict[str, Trial] = {}
            for trial in inside:
                seeds.setdefault(trial.variant.group, {})[trial.seed] = None
                templates.setdefault(trial.variant.group, trial)
            cells.append(cls({group: tuple(numbers) for group, numbers in seeds.items()}, templates))
        return cells

    def trial(self, variant: Variant, seed: int, fraction: float) -> Trial:
        """A trial here; what trains nothing, or is solved at once, has no fraction."""
        made = self._made.get((variant, seed, fraction))
        if made is None:
            made = replace(self.templates[variant.group], variant=variant, seed=seed)
            if made.trains and not made.solved:
                made = replace(made, fraction=fraction)
            self._made[variant, seed, fraction] = made
        return made

    def seed(self, method: str, number: int) -> int:
        """The seed of a method's run of that number: those that the study lists, then new ones above them, to tell finalists
        apart."""
        seeds = self.seeds[method]
        return seeds[number] if number < len(seeds) else max(seeds) + 1 + number - len(seeds)

    def name(self, method: str | None = None) -> str:
        """For sentences: `reviews, 16 rows` or `reviews, 16 rows, lora`."""
        template = next(iter(self.templates.values()))
        return ", ".join([template.task, f"{template.scale or 'all'} rows", *([method] if method else [])])


def identity(cell: Cell, spaces: Sequence[SearchSpace], search: SearchSettings, what: str) -> list[Any]:
    """What a scheduler's state depends on; see `scheduler.StateFile`. The same as in 0.1, whose states are still read."""
    templates = {
        group: {k: v for k, v in trial.to_json().items() if k not in ("methods", "label", "seed", "fraction")}
        for group, trial in cell.templates.items()
    }
    wanted = {space.group for space in spaces}
    options = [[s.group, [v.methods for v in s.variants], {n: repr(r) for n, r in s.space.items()}] for s in spaces]
    seeds = {group: list(cell.seeds[group]) for group in sorted(wanted)}
    # A longer or another search is another state; a state under one name would be read by both.
    how = search.model_dump(exclude={"strategy"})  # `what` says it
    return [what, {g: t for g, t in templates.items() if g in wanted}, options, seeds, how]


def in_cohorts(trials: Iterable[Trial], size: int, purpose: Purpose, why: str = "") -> list[Cohort]:
    """Trials in cohorts of at most `size`, as far as they can share a pass; the rest alone. The same for the same trials."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    # Methods without chance give the same trial for every seed.
    for trial in {trial.identifier: trial for trial in trials}.values():
        together = size > 1 and trial.trains and all(m.capabilities.mixed_rows for m in trial.variant.build())
        cell = (trial.backbone_index, trial.objective, trial.task_index, trial.scale, trial.draw)
        # One pass has one backbone and one batch layout; a method that changes the backbone's own weights would change
        # its neighbours'.
        groups.setdefault(cell if together else (trial.identifier,), []).append(trial)
    return [
        Cohort(tuple(group[i : i + size]), purpose, why=why)
        for group in groups.values()
        for i in range(0, len(group), size)
    ]


class SequentialScheduler(Scheduler):
    """Schedulers one after the other. All are measured first, because loading and measuring are shared; each then takes
    an equal part of what is left of its account when its turn comes, so that what one leaves goes to those after it.

    Args:
        schedulers: one per cell, or one per method and cell.
    """

    def __init__(self, schedulers: Sequence[CellScheduler]) -> None:
        super().__init__()
        self.schedulers = schedulers
        self._turn = -1
        self._measuring: dict[Trial, CellScheduler] = {}
        """Who asked for a measurement."""

    @property
    def _current(self) -> CellScheduler:
        return self.schedulers[max(0, self._turn)]

    @property
    def account(self) -> str | None:  # type: ignore[override]  # an attribute of those that never change it
        return self._current.account

    @property
    def finals(self) -> list[Trial]:
        return list({trial.identifier: trial for one in self.schedulers for trial in one.finals}.values())

    @property
    def expected_finals(self) -> int:
        return sum(scheduler.expected_finals for scheduler in self.schedulers)

    @property
    def prunes(self) -> bool:
        return self._current.prunes

    @property
    def baselines_due(self) -> bool:
        return all(scheduler.baselines_due for scheduler in self.schedulers)

    @property
    def keeps(self) -> set[str]:
        return {name for scheduler in self.schedulers for name in scheduler.keeps}

    def prepare(self) -> None:
        for scheduler in self.schedulers:
            scheduler.prepare()

    def to_measure(self) -> Sequence[Trial]:
        self._measuring = {trial: scheduler for scheduler in self.schedulers for trial in scheduler.to_measure()}
        return list(self._measuring)

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        self._measuring[trial].measured(trial, cost, error)

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        while self._turn < len(self.schedulers):
            if self._turn >= 0 and (cohorts := self._current.next_cohorts(slots)):
                return cohorts
            # The last one stays the current one: its time limits and facts are asked after it has ended.
            if self._turn + 1 == len(self.schedulers):
                return ()
            self._turn += 1
            # With a budget per method each pays from its own account, so only cells of the same method divide one.
            waiting = [one for one in self.schedulers[self._turn :] if one.account == self._current.account]
            # An equal part of what is left now, not of the beginning: what those before did not spend is divided among
            # those that come.
            self._current.begin(1 / len(waiting))
        return ()

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        return self._current.time_limit(cohort, costs)

    def done(self, trial: Trial, record: TrialRecord) -> None:
        self._current.done(trial, record)

    def facts(self, trial: Trial) -> SearchFacts | None:
        return self._current.facts(trial)

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        return self._current.prune(trial, step, loss)

    def new_notes(self) -> list[str]:
        return [note for scheduler in self.schedulers for note in scheduler.new_notes()]
