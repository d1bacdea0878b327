"""The race in one cell: all methods and settings for one sum of money, with `racing.SuccessiveHalving` deciding who goes on.

    measure trial_costs -> how many settings and how long -> rungs of short tries -> finalists on several seeds

Jobs of a rung are tries, judged on validation rows; runs of the last rung are final trials, evaluated on the test rows
too, which choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dollartune.budget.study_budget import kept_back
from dollartune.config import SearchSettings
from dollartune.engines.base import Cohort, Timed, TimeLimit
from dollartune.errors import UserError
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule.arms import Arm, Run, draw_arms
from dollartune.schedule.race_plan import FINALISTS, RacePlan, affordable_plan
from dollartune.schedule.scheduler import Account, Cell, Host, State, identity, in_cohorts, missing
from dollartune.schedule.search_space import SearchSpace
from dollartune.schedule.successive_halving import SuccessiveHalving
from dollartune.trials.record import SearchFacts
from dollartune.trials.trial import Trial, Variant

SETTINGS = 4
"""Settings per method that begin the race, where the study does not say; fewer if the money is short."""
PATIENCE = 2.5
"""A job that takes this many times what was expected is ended."""


class RacingScheduler:
    """All methods in one cell, for one sum.

    Args:
        host: the study.
        cell: where.
        found: what may be tried of each method.
        search: how.
    """

    def __init__(self, host: Host, cell: Cell, found: Sequence[SearchSpace], search: SearchSettings) -> None:
        self.host, self.cell, self.search = host, cell, search
        self.found = {candidates.group: candidates for candidates in found if candidates.group in cell.templates}
        self.seeds = max(cell.seeds.values(), key=len)
        self.state = State(host.store, host.ledger, identity(cell, list(self.found.values()), search, "race"))
        budget = host.settings.budget
        self.reserve = kept_back(host.settings, budget) if budget is not None else 0.0
        self.account: Account | None = None
        self.race: SuccessiveHalving | None = None
        self._running = 1

    def measure(self) -> None:
        """Learns what each method costs, once. A method that cannot even be measured does not run in the race."""
        for group in self.found:
            if self.state.get(f"trial_cost {group}") is None:
                trial = self.cell.trial(self.found[group].variants[0], self.cell.seeds[group][0], 1.0)
                try:
                    self.state.save(**{f"trial_cost {group}": self.host.engine.measure(trial).to_json()})
                except Exception as error:
                    self.host.display.note(f"{group} does not take part: {error}")
                    self.state.save(**{f"trial_cost {group}": False})

    @property
    def finals(self) -> list[Trial]:
        """Trials of the last rung that were run; where there is none, the one that says why."""
        return self._finalists() or self._instead()

    def _finalists(self) -> list[Trial]:
        found = [self._trial(job) for job in self._told() if job.fraction == 1]
        return list({trial.identifier: trial for trial in found}.values())

    @property
    def finished(self) -> bool:
        return bool(self.state.get("over"))

    def run(self, part: float) -> list[Trial]:
        """Races to the end, and returns the final trials.

        Args:
            part: of the study's remaining money (0 to 1) that this cell gets, if it has got none yet.
        """
        self.account = Account(self.host.ledger, None, self.state, part)
        self.race = self._start()
        while self.race is not None and (batch := self.race.batch()):
            self._run(batch)
        if self.race is None or not any(job.fraction == 1 for job in self._told()):
            self._complete(self._instead())
        self.state.save(over=True)
        self.host.display.note(self._sentence())
        return self.finals

    # The race

    def _start(self) -> SuccessiveHalving | None:
        """The race as it stood; None where the money pays for no run at all."""
        if self.state.get("terms") is None:
            wanted, money = self.search.trials or SETTINGS, self._usable()
            terms = affordable_plan(self._trial_costs(), self.found, wanted, len(self.seeds), money, self.reserve)
            arms = self._arms(terms.settings)
            self.state.save(
                terms=[terms.settings, terms.seeds, terms.whole, list(terms.fractions)],
                arms=[[arm.method, dict(arm.setting), arm.number] for arm in arms],
                budget=self._usable(),
            )
        terms = self._kept_terms()
        try:
            race = SuccessiveHalving(
                [Arm(*arm) for arm in self.state["arms"]],
                self._cost,
                self.state["budget"],
                fractions=terms.fractions,
                seeds=terms.seeds,
                finalists=FINALISTS,
                most_seeds=max(terms.seeds, 2 * len(self.seeds)),
            )
        except UserError as error:
            self.host.display.note(error.message)
            return None
        race.replay(self.state.get("told") or [])
        return race

    def _kept_terms(self) -> RacePlan:
        settings, seeds, whole, fractions = self.state["terms"]
        return RacePlan(settings, seeds, whole, tuple(fractions))

    def _run(self, jobs: Sequence[Run]) -> None:
        """Runs all jobs of a rung side by side as far as the engine can, and tells as they come."""
        purpose = "final" if jobs[0].fraction == 1 else "try"
        trials = {job.key: self._trial(job) for job in jobs}
        together = self.host.settings.training.most_together(self.host.engine.device)
        cohorts = in_cohorts(missing(self.host.store, trials.values(), purpose), together, purpose)
        self.host.scheduler = self
        self._tell(jobs, trials, purpose)
        while cohorts and self.race is not None:
            waiting = {self._trial(job).identifier for job in self.race.batch()}  # some lose their money on the way
            cohorts = [cohort for cohort in cohorts if any(trial.identifier in waiting for trial in cohort.trials)]
            now, cohorts = cohorts[: self.host.engine.slots], cohorts[self.host.engine.slots :]
            self._running = max(1, len(now))
            self.host.engine.run(now)
            self._tell(jobs, trials, purpose)

    def _tell(self, jobs: Sequence[Run], trials: Mapping[Any, Trial], purpose: str) -> None:
        """Tells the race what is known of its jobs, in order."""
        assert self.race is not None
        counted = {row[6] for row in self._log()}
        for job in jobs:
            trial = trials[job.key]
            if job not in self.race.batch() or not self.host.store.has(trial.identifier):
                continue
            record = self.host.store.read(trial.identifier)
            if purpose == "final" and record.status == "tried":
                continue
            score = record.validation_score if record.status != "failed" else None
            error = record.validation.standard_error if record.validation is not None else 0.0
            seconds = 0.0 if trial.identifier in counted else record.cost.seconds
            counted.add(trial.identifier)
            self.race.tell(job, score, seconds, error)
            log = [*self._log(), [*job.key, score, seconds, error, trial.identifier]]
            self.state.save(told=self.race.state(), log=log)
        if purpose == "final":
            self.host.decided(self._finalists())

    def _log(self) -> list[list[Any]]:
        return self.state.get("log") or []

    def _told(self) -> list[Run]:
        arms = {arm.name: arm for arm in (Arm(*row) for row in self.state.get("arms") or [])}
        return [Run(arms[name], fraction, seed) for name, fraction, seed, *_ in self.state.get("told") or []]

    def _trial(self, job: Run) -> Trial:
        group = job.arm.method
        own = self.cell.seeds[group]
        extra = max(own) + 1 + job.seed - len(own)  # seeds beyond the study's, to tell finalists apart
        seed = own[job.seed] if job.seed < len(own) else extra if len(own) > 1 or len(self.seeds) == 1 else own[0]
        fraction = round(job.fraction * self._kept_terms().whole, 4)
        return self.cell.trial(self.found[group].variant(job.arm.setting), seed, fraction)

    def _complete(self, trials: Sequence[Trial]) -> None:
        self.host.scheduler = self
        self.host.decided(trials)
        self.host.engine.run(in_cohorts(missing(self.host.store, trials, "final"), 1, "final"))

    def _instead(self) -> list[Trial]:
        """One trial that says by its record why nothing else was run: of the cheapest method, shortened to the money."""
        if self.state.get("seconds") is None:
            return []
        trial_costs = self._trial_costs()
        if not trial_costs:
            group = next(iter(self.found))
            return [self.cell.trial(self._variants(group)[0], self.cell.seeds[group][0], 1.0)]
        group = min(trial_costs, key=lambda name: trial_costs[name].final(trial_costs[name].least))
        if self.state.get("instead") is None:
            longest = trial_costs[group].longest_final(self._usable(), self.reserve)
            self.state.save(instead=max(longest, trial_costs[group].least / 4))
        return [self.cell.trial(self._variants(group)[0], self.cell.seeds[group][0], self.state["instead"])]

    def _variants(self, group: str) -> tuple[Variant, ...]:
        return self.found[group].variants

    # Money

    def _trial_cost(self, group: str) -> TrialCost | None:
        stored = self.state.get(f"trial_cost {group}")
        return TrialCost(**stored) if stored else None

    def _trial_costs(self) -> dict[str, TrialCost]:
        """Of the methods that could be measured."""
        return {group: trial_cost for group in self.found if (trial_cost := self._trial_cost(group)) is not None}

    def _cost(self, job: Run) -> float:
        trial_cost = self._trial_cost(job.arm.method)
        assert trial_cost is not None
        fraction = job.fraction * self._kept_terms().whole
        return trial_cost.final(fraction, self.reserve) if job.fraction == 1 else trial_cost.tried(fraction)

    def _usable(self) -> float:
        assert self.account is not None
        return 0.97 * self.account.left() - 0.3

    def _arms(self, settings: int) -> list[Arm]:
        """Each method's own default, then settings that cover its space; of a grid the first ones."""
        arms: list[Arm] = []
        for group, candidates in self.found.items():
            if self._trial_cost(group) is None:
                continue
            if candidates.grid:
                drawn = [Arm(group, values, number) for number, values in enumerate(candidates.first[:settings])]
            else:
                first = {group: candidates.first[0]} if candidates.space else {}
                drawn = list(draw_arms({group: candidates.space}, settings, self.search.seed, first))
            arms.extend(arm for arm in drawn if self._possible(arm))
        return arms

    def _possible(self, arm: Arm) -> bool:
        try:
            self.found[arm.method].variant(arm.setting)
        except UserError:
            return False
        return True

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        """What a cohort may spend: what was expected with some patience, and never more than is left."""
        assert self.account is not None
        left = self.account.left()
        ids = {trial.identifier for trial in cohort.trials}
        jobs = [] if self.race is None else self.race.batch()
        own = [job for job in jobs if self._trial(job).identifier in ids]
        expected = {job.key: self.race.expected(job) for job in jobs} if self.race is not None else {}
        mine, all_waiting = sum(expected[job.key] for job in own), sum(expected.values())
        if cohort.purpose == "try":
            aside = self.race.set_aside() if self.race is not None else 0.0
            seconds = min(PATIENCE * mine, (left - aside) / self._running)
            return self.account.time_limit(seconds, cohort, context, self.host.settings)
        share = mine / all_waiting if all_waiting > 0 else 1.0
        return self.account.time_limit(left * share, cohort, context, self.host.settings, self.reserve)

    # Words

    def _sentence(self) -> str:
        terms, told = self.state.get("terms"), self._told()
        template = next(iter(self.cell.templates.values()))
        where = f"{template.task}, {template.scale or 'all'} rows"
        finalists = {job.arm.name for job in told if job.fraction == 1}
        if terms is None or not finalists:
            return f"{where}: the money pays for no race."
        kept = self._kept_terms()
        seeds = min(sum(job.arm.name == name and job.fraction == 1 for job in told) for name in finalists)
        share = "the whole training" if kept.whole == 1 else f"{kept.whole:.0%} of the training"
        return (
            f"{where}: {len(self.state['arms'])} settings of {len({a[0] for a in self.state['arms']})} methods raced, "
            f"{len(finalists)} came to the end, with {share} on {seeds} seeds or more of {len(self.seeds)} wanted."
        )

    def facts(self, trial: Trial) -> SearchFacts | None:
        """How a finalist was chosen, for its record."""
        terms = self.state.get("terms")
        if terms is None:
            return None
        return SearchFacts(
            tried=len(self.state["arms"]),
            try_fraction=terms[2] * terms[3][0],
            fraction=terms[2],
            seeds=terms[1],
            seeds_wanted=len(self.seeds),
        )
