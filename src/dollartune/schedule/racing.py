"""The race in one cell: all methods and settings for one sum of money; `SuccessiveHalving` decides who goes on.

    measure costs -> how many settings and how long (race_plan) -> rungs of search trials -> finalists on several seeds

Jobs of the rungs before the last are search trials, judged on validation rows; jobs of the last rung are final trials,
evaluated on the test rows too, which choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.budget.study_budget import reserve_of
from dollartune.errors import UserError
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule.cells import Cell, identity, in_cohorts
from dollartune.schedule.optuna_search import OptunaSearch, load_libraries
from dollartune.schedule.race_plan import RacePlan, affordable_plan
from dollartune.schedule.scheduler import (
    PATIENCE,
    Account,
    AccountPart,
    CellScheduler,
    StateFile,
    TrialOutcome,
    time_limit,
)
from dollartune.schedule.successive_halving import (
    FINALISTS,
    MOST_SEEDS_FACTOR,
    Arm,
    JobOutcome,
    RaceJob,
    SuccessiveHalving,
    ToldJob,
)
from dollartune.trials.record import SearchFacts, TrialRecord

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import SearchSettings, StudySettings
    from dollartune.engines.base import Cohort, EvaluationCost, Purpose, TimeLimit
    from dollartune.methods.space import Space
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

SETTINGS = 4
"""Settings per method that begin a race, where the study does not say; fewer if the money is short. The rate and one more
setting at two values each: what a quasi-random draw of four covers."""
DRAWS_PER_SETTING = 4
"""Settings that were drawn before are drawn again, so many times at most: a small space has no more."""
FRACTION_DIGITS = 4
"""Of a trial's fraction: it is part of the trial's identity, and rounding errors must not make another trial of it."""
SHORTEST_FALLBACK = 1 / 4
"""Of the least steps that are worth a run: the one trial that says why nothing else was run."""


@dataclass(frozen=True)
class FinalJob:
    """A final trial that was asked for."""

    arm: str
    seed: int


@dataclass
class RaceState:
    """What a race has decided, on disk."""

    costs: dict[str, TrialCost] = field(default_factory=dict)
    """By method; those that could be measured."""
    unmeasurable: dict[str, str] = field(default_factory=dict)
    """By method: why it does not take part."""
    account: AccountPart | None = None
    plan: RacePlan | None = None
    arms: list[Arm] = field(default_factory=list)
    seconds: float = 0.0
    """What the race was planned with."""
    outcomes: dict[str, TrialOutcome] = field(default_factory=dict)
    """By trial: what it left."""
    told: list[ToldJob] = field(default_factory=list)
    told_trials: list[str] = field(default_factory=list)
    """Trials whose seconds have been counted: what trains nothing is one trial at every rung."""
    final_jobs: list[FinalJob] = field(default_factory=list)
    fallback_fraction: float | None = None
    """Of the one trial that is run where the money pays for no race."""
    over: bool = False

    @classmethod
    def from_version_1(cls, values: Mapping[str, Any]) -> RaceState | None:
        """A race of 0.1 that had ended stays as it ended; any other is begun anew, with the records that it left."""
        if not values.get("over") or not values.get("terms"):
            return None
        settings, seeds, whole, fractions = values["terms"]
        told = [
            ToldJob(name, fraction, seed, JobOutcome(score, seconds, error))
            for name, fraction, seed, score, seconds, error in values.get("told") or []
        ]
        trials = [row[6] for row in values.get("log") or []]
        costs = {name.removeprefix("pace "): cost for name, cost in values.items() if name.startswith("pace ") and cost}
        return cls(
            costs={name: TrialCost(**cost) for name, cost in costs.items()},
            account=AccountPart(values["seconds"], values["began"]),
            plan=RacePlan(settings, seeds, whole, tuple(fractions)),
            arms=[Arm(method, setting, number) for method, setting, number in values["arms"]],
            seconds=values["budget"],
            outcomes={
                trial: TrialOutcome(
                    j.outcome.score, j.outcome.standard_error, j.outcome.seconds, None, None, j.fraction < 1
                )
                for trial, j in zip(trials, told, strict=False)
            },
            told=told,
            told_trials=trials,
            final_jobs=[FinalJob(job.arm, job.seed) for job in told if job.fraction == 1],
            fallback_fraction=values.get("instead"),
            over=True,
        )


class RacingScheduler(CellScheduler):
    """All methods in one cell, for one sum.

    Args:
        cell: where.
        spaces: what may be tried of each method.
        search: how.
        together: most trials of a cohort.
    """

    def __init__(
        self,
        settings: StudySettings,
        store: Store,
        ledger: Ledger,
        cell: Cell,
        spaces: Sequence[SearchSpace],
        search: SearchSettings,
        together: int = 1,
    ) -> None:
        super().__init__()
        self.settings, self.ledger, self.cell, self.search, self.together = settings, ledger, cell, search, together
        self.spaces = {space.group: space for space in spaces if space.group in cell.templates}
        # Methods without chance (solved ones, baselines) have one seed; the race is planned by those that have several.
        self.seeds = max(cell.seeds.values(), key=len)
        self.reserve = reserve_of(settings, settings.budget) if settings.budget is not None else 0.0
        what = identity(cell, list(self.spaces.values()), search, "race")
        self._file = StateFile(store, ledger, what, RaceState, RaceState.from_version_1)
        self.state = self._file.read() or RaceState()
        self._race: SuccessiveHalving | None = None
        self._side_by_side = 1
        if self.state.plan is not None:
            self._race = self._open_race()

    # The contract

    @property
    def finals(self) -> list[Trial]:
        """Final trials that were run, and those that are run now; where there are none, the one that says why."""
        arms = {arm.name: arm for arm in self.state.arms}
        # Asked for and taken back, because others cost more than expected: such a final was never run and is no result.
        waiting = {(job.arm.name, job.seed) for job in self._batch() if job.fraction == 1}
        asked = {(job.arm, job.seed): None for job in self.state.final_jobs} | dict.fromkeys(waiting)
        trials: dict[str, Trial] = {}
        for name, seed in asked:
            trial = self._trial(RaceJob(arms[name], 1.0, seed))
            if (name, seed) in waiting or self._outcome(trial, "final") is not None:
                trials.setdefault(trial.identifier, trial)  # arms without a seed of their own give the same trial twice
        return list(trials.values()) or self._fallback()

    @property
    def expected_finals(self) -> int:
        known = len(self.finals)
        if self.state.over or self.state.final_jobs or any(job.fraction == 1 for job in self._batch()):
            return known
        seeds = len(self.seeds) if self.state.plan is None else self.state.plan.seeds
        return max(known, min(FINALISTS, len(self.spaces)) * seeds)

    def prepare(self) -> None:
        load_libraries()

    def to_measure(self) -> Sequence[Trial]:
        known = {*self.state.costs, *self.state.unmeasurable}
        return [self._template(method) for method in self.spaces if method not in known]

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        """A method that cannot even be measured does not run in the race."""
        method = trial.variant.group
        if cost is None:
            self.note(f"{method} skipped: its speed could not be measured ({error})")
            self.state.unmeasurable[method] = error
        else:
            self.state.costs[method] = cost
        self._save()

    def begin(self, part: float) -> None:
        if self.state.account is None:
            self.state.account = Account.take(self.ledger, None, part)
            self._save()
        if self.state.plan is None:
            self._plan_race()

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        self._tell_known()
        if jobs := self._batch():
            # A rung has more jobs than run at once.
            cohorts = self._cohorts(jobs)[:slots]  # no more: what these take may cost others their money
            self._side_by_side = max(1, len(cohorts))
            return cohorts
        fallback = [t for t in self._fallback() if not self.finals_run and self._outcome(t, "final") is None]
        if fallback:
            return in_cohorts(fallback, 1, "final", self._sentence())
        if not self.state.over:
            self.state.over = True
            self._save()
            self.note(self._sentence())
        return ()

    def done(self, trial: Trial, record: TrialRecord) -> None:
        self.state.outcomes[trial.identifier] = TrialOutcome.of(record)
        self._save()

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """What was expected with some patience, and never more than is left beside the final's reserve."""
        left = self._account.left()
        asked = {trial.identifier for trial in cohort.trials}
        race = self._race
        expected = {} if race is None else {job: race.expected(job) for job in race.batch()}
        here = sum(seconds for job, seconds in expected.items() if self._trial(job).identifier in asked)
        if cohort.purpose == "search":
            reserved = 0.0 if race is None else race.reserve()
            # Trials side by side are granted their limits at the same time and would each count on the same money.
            seconds = min(PATIENCE * here, (left - reserved) / self._side_by_side)
            return time_limit(seconds, cohort, costs, self.settings, None)
        waiting = sum(expected.values())
        # Finals share what is left by what each is expected to take, so that a slow method is not cut to a fast one's
        # time.
        part = here / waiting if waiting > 0 else 1.0
        return time_limit(left * part, cohort, costs, self.settings, None, self.reserve)

    def facts(self, trial: Trial) -> SearchFacts | None:
        plan = self.state.plan
        if plan is None:
            return None
        return SearchFacts(
            tried=len(self.state.arms),
            try_fraction=plan.whole * plan.fractions[0],
            fraction=plan.whole,
            seeds=plan.seeds,
            seeds_wanted=len(self.seeds),
        )

    # The race

    def _plan_race(self) -> None:
        """Decides how many settings race how long, and draws them."""
        wanted, seconds = self.search.trials or SETTINGS, self._account.plannable()
        plan = affordable_plan(self.state.costs, self.spaces, wanted, len(self.seeds), seconds, self.reserve)
        self.state.plan, self.state.arms, self.state.seconds = plan, self._draw(plan.settings), seconds
        self._save()
        self._race = self._open_race()

    def _open_race(self) -> SuccessiveHalving | None:
        """The race as it stood; None where the money pays for no run at all."""
        plan = self._plan
        if not self.state.arms:  # why each method is left out was said
            return None
        try:
            race = SuccessiveHalving(
                self.state.arms,
                self._cost,
                self.state.seconds,
                fractions=plan.fractions,
                seeds=plan.seeds,
                finalists=FINALISTS,
                most_seeds=max(plan.seeds, MOST_SEEDS_FACTOR * len(self.seeds)),
            )
        except UserError as error:
            if not self.state.over:
                self.note(error.message)
            return None
        # After the note above, since a race that is over has said it.
        if self.state.over:  # it stays as it ended, whatever this version would have decided
            return None
        race.tell_again(self.state.told)
        return race

    def _tell_known(self) -> None:
        """Tells the race what trials left, in the order of its jobs, whatever the order in which they came."""
        race = self._race
        if race is None:
            return
        # Telling may close a rung and open the next, whose jobs may have records already (a study that goes on after a
        # kill).
        progress = True
        while progress:
            progress = False
            for job in race.batch():
                trial = self._trial(job)
                # In the race's order and not in the order of arrival: with several workers that would differ from run
                # to run, and so would who is dropped for lack of money.
                outcome = self._outcome(trial, _purpose(job))
                if outcome is None or job not in race.batch():  # what is told may take others' money or place
                    continue
                counted = trial.identifier in self.state.told_trials
                # What trains nothing is the same trial at every rung: it was paid once.
                race.tell(job, outcome.score, 0.0 if counted else outcome.seconds, outcome.standard_error)
                self.state.told_trials.append(trial.identifier)
                self.state.told = list(race.told)
                progress = True
        finals = [FinalJob(job.arm.name, job.seed) for job in race.batch() if job.fraction == 1]
        self.state.final_jobs.extend(job for job in finals if job not in self.state.final_jobs)
        self._save()

    def _batch(self) -> Sequence[RaceJob]:
        return () if self._race is None else self._race.batch()

    def _cohorts(self, jobs: Sequence[RaceJob]) -> list[Cohort]:
        rung = f"{numbers.percent(jobs[0].fraction * self._plan.whole)} of the training"
        purpose = _purpose(jobs[0])
        what = "the finalists on their seeds" if purpose == "final" else "settings that are still in the race"
        return in_cohorts(map(self._trial, jobs), self.together, purpose, f"{self.cell.name()}: {what}, {rung}")

    def _trial(self, job: RaceJob) -> Trial:
        method = job.arm.method
        seeds = self.cell.seeds[method]
        one_for_all = len(seeds) == 1 and len(self.seeds) > 1  # nothing of this method depends on a seed
        seed = seeds[0] if one_for_all else self.cell.seed(method, job.seed)
        # The fraction is part of the trial's identifier.
        fraction = round(job.fraction * self._plan.whole, FRACTION_DIGITS)
        return self.cell.trial(self.spaces[method].variant(job.arm.setting), seed, fraction)

    def _outcome(self, trial: Trial, purpose: Purpose) -> TrialOutcome | None:
        """What a trial left; None where it has not run, or has not been evaluated on the test rows as a final must be."""
        outcome = self.state.outcomes.get(trial.identifier)
        return None if outcome is None or (purpose == "final" and outcome.search_trial) else outcome

    def _draw(self, settings: int) -> list[Arm]:
        """Each method's default, then settings that cover its space; of a grid the first ones."""
        arms: list[Arm] = []
        for method, space in self.spaces.items():
            if method not in self.state.costs:
                continue
            if space.grid:
                drawn = [Arm(method, values, number) for number, values in enumerate(space.first[:settings])]
            else:
                # The default first: where money is short, one setting per method races, and it should be the one that
                # people would take.
                first = {method: space.first[0]} if space.space else {}
                drawn = list(draw_arms({method: space.space}, settings, self.search.seed, first))
            arms.extend(arm for arm in drawn if self._possible(arm))
        return arms

    def _possible(self, arm: Arm) -> bool:
        try:
            self.spaces[arm.method].variant(arm.setting)
        except UserError:  # settings that the method refuses together
            return False
        return True

    # Where the money pays for no race

    @property
    def finals_run(self) -> bool:
        """Whether any final trial of the race itself was run."""
        return any(job.fraction == 1 for job in self.state.told)

    def _fallback(self) -> list[Trial]:
        """One trial that says by its record why nothing else was run: of the cheapest method, shortened to the money."""
        if self.state.account is None or self._batch():
            return []
        if not self.state.costs:
            return [self._template(next(iter(self.spaces)))]
        costs = self.state.costs
        # The cheapest shortest run, not the cheapest step: an expensive step may come with fewer of them.
        method = min(costs, key=lambda name: costs[name].final(costs[name].least))
        if self.state.fallback_fraction is None:
            longest = costs[method].longest_final(self._account.plannable(), self.reserve)
            self.state.fallback_fraction = max(longest, SHORTEST_FALLBACK * costs[method].least)
            self._save()
        return [self._template(method, self.state.fallback_fraction)]

    def _template(self, method: str, fraction: float = 1.0) -> Trial:
        return self.cell.trial(self.spaces[method].variants[0], self.cell.seeds[method][0], fraction)

    # Money and words

    @property
    def _account(self) -> Account:
        assert self.state.account is not None, "begin() comes first"
        return Account(self.ledger, None, self.state.account)

    @property
    def _plan(self) -> RacePlan:
        assert self.state.plan is not None, "begin() comes first"
        return self.state.plan

    def _cost(self, job: RaceJob) -> float:
        cost, fraction = self.state.costs[job.arm.method], job.fraction * self._plan.whole
        return cost.final(fraction, self.reserve) if job.fraction == 1 else cost.tried(fraction)

    def _save(self) -> None:
        # Before anything is run on it: after a kill the same decisions are read, not made again from other seconds.
        self._file.write(self.state)

    def _sentence(self) -> str:
        plan, where = self.state.plan, self.cell.name()
        finals = [job for job in self.state.told if job.fraction == 1]
        if plan is None or not finals:
            return f"{where}: the budget is too small to compare methods."
        finalists = {job.arm for job in finals}
        seeds = min(sum(job.arm == name for job in finals) for name in finalists)
        told = {job.arm for job in self.state.told}  # without settings that nothing was left for
        methods = len({arm.method for arm in self.state.arms if arm.name in told})
        length = "the whole training" if plan.whole == 1 else f"{numbers.percent(plan.whole)} of the training"
        many = f"{seeds} seed{'s' if seeds > 1 else ''}"
        # A close race buys more seeds than the study lists: then nothing was too small.
        few = seeds < len(self.seeds)
        short = "Budget too small for all of it: " if few or plan.whole < 1 else ""
        return (
            f"{where}: {short}{len(told)} settings of {methods} methods tried, {len(finalists)} trained to the end, "
            f"with {length}, on {many}{f' of {len(self.seeds)}' if seeds <= len(self.seeds) else ''}."
        )


def _purpose(job: RaceJob) -> Purpose:
    return "final" if job.fraction == 1 else "search"


def draw_arms(
    spaces: Mapping[str, Mapping[str, Space]],
    per_method: int = SETTINGS,
    seed: int = 0,
    first: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Arm, ...]:
    """Arms for a race: each method's default, then settings that cover its space evenly.

    Args:
        spaces: search space by method; a method with an empty one gets a single arm.
        first: default settings by method.
    """
    arms: list[Arm] = []
    for method, space in spaces.items():
        search = OptunaSearch(space, seed, "quasi", first=(first or {}).get(method, {}))
        seen: list[Mapping[str, Any]] = []
        # An empty space has one setting, and asking again would give it again.
        for _ in range(DRAWS_PER_SETTING * per_method if space else 1):
            proposal = search.ask()
            # Quasi-random draws do not look at scores; telling one only frees the proposal, so that the next may be
            # asked.
            search.tell(proposal.number, 0.0)
            if proposal.values not in seen and len(seen) < per_method:
                seen.append(proposal.values)
        arms.extend(Arm(method, setting, number) for number, setting in enumerate(seen))
    return tuple(arms)
