"""Successive halving: many arms (method and setting) get a little training, the better ones more, finalists several seeds.

    rung 1   fraction 1/9   all arms            within each method, the better settings stay
    rung 2   fraction 1/3   the better settings across methods, what noise or money can explain stays
    final    fraction 1     the finalists       three seeds each, more while money lasts and they cannot be told apart

Halving by rank alone drops good arms: at an early rung differences are smaller than their noise, and methods learn at
different speeds (reference 001, Table 4: full tuning is ahead early, others later). So
- at the first rung an arm competes only with the settings of its own method, and each method keeps one at least;
- between methods, an arm is dropped only if it is behind by more than `guard` standard errors plus a slack for what it
  may still gain, or if the money does not reach that far; then each method's best setting goes before second settings;
- the final's money is a reserve that nothing else may touch.

It is pure logic: ask for jobs, tell scores and seconds. Its state is what it was told (`told`), in that order; a race that
was killed is told the same again.

Source: successive halving: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", 2016; here with the rule above in place of a fixed quota. "Arm" and "job" are that literature's words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dollartune import format as numbers
from dollartune.errors import UserError

FRACTIONS = (1 / 9, 1 / 3, 1.0)
"""Rungs: each three times as long as the one before, as eta is 3 (Li et al., "Hyperband", 2018, find 3 to 4 best)."""
COMPARABLE = 1 / 3
"""Of a training: before that methods are not compared with each other, as they learn at different speeds."""
ETA = 3
"""At the first rung one setting in so many stays within a method."""
FINALISTS = 3
"""Methods with their settings that come to the last rung: the final's reserve pays for so many."""
GUARD = 1.5
"""Standard errors of a difference that count as noise: a setting that is truly as good is dropped 7 times in 100. With 2
nearly nothing is dropped at rungs of a few hundred validation rows, and the money goes to what is behind."""
SLACK = 0.02
"""Score that a slower method may still gain on the leader, per whole training that is left: reference 001, Table 4, has
methods cross by two points after the first third."""
LEADERS_KEPT = 2
"""Whatever its score, the second best method stays until the final: a race that ends with one claims nothing."""
MOST_SEEDS_FACTOR = 2
"""Finalists that cannot be told apart get at most so many times the study's seeds: an interval shrinks by 0.7 then, and by
less with every seed after."""
MOST_RESERVE = 2 / 3
"""Of what is left, the final's reserve takes no more than that: with less than a third there is nothing to choose from."""


@dataclass(frozen=True)
class Arm:
    """A method with one setting of its hyperparameters."""

    method: str
    setting: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    """Tells the settings of a method apart; 0 is its default."""

    @property
    def name(self) -> str:
        return f"{self.method}#{self.number}"

    def __hash__(self) -> int:
        return hash((self.method, self.number))


@dataclass(frozen=True)
class RaceJob:
    """Train an arm up to a fraction of its full training and evaluate it."""

    arm: Arm
    fraction: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        return self.arm.name, self.fraction, self.seed


@dataclass(frozen=True)
class JobOutcome:
    """What a job gave. `score` is None when it failed."""

    score: float | None
    seconds: float
    standard_error: float = 0.0
    """Of the score over the validation examples."""


@dataclass(frozen=True)
class ToldJob:
    """One thing that a race was told."""

    arm: str
    """Its name."""
    fraction: float
    seed: int
    outcome: JobOutcome


@dataclass(frozen=True)
class ArmResult:
    """An arm in the result."""

    arm: Arm
    score: float
    """Mean over seeds at the highest fraction it reached."""
    seeds: int
    fraction: float


class SuccessiveHalving:
    """The race.

    Args:
        arms: at least one; names must differ.
        cost: expected seconds of a job. Where training can go on from a checkpoint of the rung before, the remaining
            seconds. Estimates are corrected by method as real seconds come in.
        seconds: for all jobs; one that would not fit by its corrected estimate is not run.
        fractions: rungs of training, rising, the last one 1.
        seeds: least number of seeds of a finalist.
        finalists: arms that the final's reserve pays for; fewer if money is short, more if it is not and they are close.
        most_seeds: where to stop adding seeds while finalists cannot be told apart.
        eta: at the first rung one setting in `eta` stays within a method.
        guard: standard errors of a difference that count as noise.
        slack: score a slower method may still gain on the leader, per whole training left (for scores of 0 to 1).
        known: jobs that were run before, and what they gave: they are not run again. An arm that is not among `arms` and has
            been trained whole comes in at the final.

    Raises:
        UserError: no arms, repeated arms, fractions that do not rise to 1, or no money for a single full run.
    """

    def __init__(
        self,
        arms: Iterable[Arm],
        cost: Callable[[RaceJob], float],
        seconds: float,
        *,
        fractions: Sequence[float] = FRACTIONS,
        seeds: int = 3,
        finalists: int = FINALISTS,
        most_seeds: int = 6,
        eta: int = ETA,
        guard: float = GUARD,
        slack: float = SLACK,
        known: Mapping[RaceJob, JobOutcome] | None = None,
    ) -> None:
        self.arms, known = tuple(arms), dict(known or {})
        self.trained = tuple(dict.fromkeys(job.arm for job in known if job.fraction == 1 and job.arm not in self.arms))
        if not self.arms or len({arm.name for arm in (*self.arms, *self.trained)}) < len(self.arms) + len(self.trained):
            raise UserError("successive halving needs at least one setting to compare, each with a name of its own.")
        if not fractions or list(fractions) != sorted(set(fractions)) or fractions[0] <= 0 or fractions[-1] != 1:
            raise UserError(f"fractions must rise to 1, got {list(fractions)}.")
        self.cost, self.seconds, self.fractions = cost, seconds, tuple(fractions)
        self.seeds, self.finalists, self.most_seeds = seeds, finalists, most_seeds
        self.eta, self.guard, self.slack = eta, guard, slack
        self.spent_seconds = 0.0
        self.dropped: dict[str, str] = {}
        """Why each arm left the race, by its name."""
        self._outcomes: dict[tuple[str, float, int], JobOutcome] = {job.key: outcome for job, outcome in known.items()}
        self._told: list[ToldJob] = []
        self._ratios: dict[str, tuple[float, float]] = {}
        self._rung = 0
        self._pending: list[RaceJob] = []
        self._entering: list[Arm] = []
        """Arms that the rung's money does not pay for, unless others turn out cheaper than expected."""
        self._rung_opened = seconds
        """Seconds that were left when the rung opened."""
        self._open_rung(list(self.arms))
        if not self._pending:
            raise UserError(
                f"{seconds:.0f} s are not enough for one training of any of {len(self.arms)} settings.",
                "Raise the budget, or lower the scale or the number of epochs.",
            )

    # -- asking and telling -------------------------------------------------------------------------------------

    def batch(self) -> tuple[RaceJob, ...]:
        """All jobs that may run now, in any order or together as cohorts; empty when the race is over."""
        return tuple(self._pending)

    def next(self) -> RaceJob | None:
        """One job; None when the race is over."""
        return self._pending[0] if self._pending else None

    def tell(self, job: RaceJob, score: float | None, seconds: float, standard_error: float = 0.0) -> None:
        """The result of a job of `batch()`.

        Raises:
            ValueError: a job that was not given out.
        """
        if job not in self._pending:
            raise ValueError(f"{job.key} is not waiting for a result")
        self._pending.remove(job)
        self.spent_seconds += seconds
        failed = score is None or not math.isfinite(score)
        if not failed:  # a run that broke early says nothing of what a whole one costs
            expected, real = self._ratios.get(job.arm.method, (0.0, 0.0))
            self._ratios[job.arm.method] = expected + self.cost(job), real + seconds
        outcome = JobOutcome(None if failed else score, seconds, standard_error)
        self._outcomes[job.key] = outcome
        self._told.append(ToldJob(*job.key, outcome))
        if failed:
            self._drop(job.arm, "failed")
        self._pending = [waiting for waiting in self._pending if waiting.arm.name not in self.dropped]
        self._keep_to_budget()
        self._enter()
        if not self._pending:
            self._advance()

    def run(self, evaluate: Callable[[RaceJob], JobOutcome]) -> ArmResult:
        """Races to the end with a function; for simulations and tests."""
        while (job := self.next()) is not None:
            outcome = evaluate(job)
            self.tell(job, outcome.score, outcome.seconds, outcome.standard_error)
        return self.winner

    @property
    def told(self) -> tuple[ToldJob, ...]:
        """What was told, in order."""
        return tuple(self._told)

    def tell_again(self, told: Iterable[ToldJob]) -> None:
        """Brings a new race to the state of another with the same arguments.

        Raises:
            UserError: that was another race.
        """
        for one in told:
            jobs = [job for job in self._pending if job.key == (one.arm, one.fraction, one.seed)]
            if not jobs:
                raise UserError(
                    f"the recorded race ran {one.arm} at {one.fraction:g} of its training, which this one would not.",
                    "The methods, settings or budget have changed since; run with --fresh.",
                )
            self.tell(jobs[0], one.outcome.score, one.outcome.seconds, one.outcome.standard_error)

    def expected(self, job: RaceJob) -> float:
        """Expected seconds of a job, by what jobs of its method took so far."""
        return self._estimate(job)

    def reserve(self) -> float:
        """Seconds of the final that jobs of the rungs before must not touch."""
        if self._final:
            return 0.0
        alive = [arm for arm in self.arms if arm.name not in self.dropped]
        return self._final_reserve(alive, self.seconds - self.spent_seconds)

    # -- results ------------------------------------------------------------------------------------------------

    @property
    def results(self) -> tuple[ArmResult, ...]:
        """All arms that gave a score: by the fraction reached, then finalists with all seeds first, then by score."""
        every = (*self.trained, *self.arms)
        results = [result for arm in every if (result := self._result(arm)) is not None]
        return tuple(sorted(results, key=lambda p: (-p.fraction, -min(p.seeds, self.seeds), -p.score, p.arm.name)))

    @property
    def winner(self) -> ArmResult:
        """The best arm.

        Raises:
            UserError: every arm failed.
        """
        if not self.results:
            raise UserError("no setting of any method gave a score: all runs failed.")
        return self.results[0]

    # -- inside: rungs ------------------------------------------------------------------------------------------

    @property
    def _final(self) -> bool:
        return self._rung >= len(self.fractions) - 1

    def _advance(self) -> None:
        """Closes a rung: who goes on, and with which jobs."""
        if self._final:
            self._add_seeds()
            return
        for arm in self._entering:
            self._drop(arm, "no money")
        self._entering = []
        alive = [arm for arm in self.arms if arm.name not in self.dropped and self._score(arm) is not None]
        if self.fractions[self._rung] < COMPARABLE:
            alive = self._better_settings(alive)
        else:
            alive = self._better_arms(alive)
        self._rung += 1
        self._open_rung(alive)
        if not self._pending and not self._final:
            self._advance()

    def _open_rung(self, arms: list[Arm]) -> None:
        """Jobs for a rung, as far as the money goes beyond the final's reserve."""
        fraction = self.fractions[self._rung]
        if self._final:
            self._open_final(arms)
            return
        # Before anything is scored there is no best; after that each method's best goes before any second setting.
        ordered = self._round_robin(arms) if self._rung == 0 else self._methods_first(arms)
        self._rung_opened = self.seconds - self.spent_seconds
        self._entering = [arm for arm in ordered if (arm.name, fraction, 0) not in self._outcomes]
        self._enter()
        if not self._pending and arms:  # even one rung is too dear: straight to the final with the most promising
            self._rung, self._entering = len(self.fractions) - 1, []
            self._open_final(ordered)

    def _enter(self) -> None:
        """Jobs for those that wait to enter the rung, as far as its money goes.

        Asked again whenever a run took less than was expected: what a method costs is hardly known before its first run.
        """
        if not self._entering:
            return
        # The final first: without it the rungs choose among what is never trained to the end. Its share is one of what was left
        # when the rung opened: of what is left now it would shrink with every run of the rung.
        alive = [arm for arm in self.arms if arm.name not in self.dropped]
        left = self.seconds - self.spent_seconds - self._final_reserve(alive, self._rung_opened)
        left -= sum(map(self._estimate, self._pending))
        for arm in list(self._entering):
            job = RaceJob(arm, self.fractions[self._rung], 0)
            if (price := self._estimate(job)) <= left:
                self._entering.remove(arm)
                self._pending.append(job)
                left -= price

    def _open_final(self, arms: list[Arm]) -> None:
        """Every finalist gets all its seeds; a finalist that cannot be paid whole is left out."""
        left = self.seconds - self.spent_seconds
        for arm in self._methods_first([*self.trained, *arms]):
            jobs = [
                job for job in (RaceJob(arm, 1.0, seed) for seed in range(self.seeds)) if job.key not in self._outcomes
            ]
            if not jobs:
                continue
            price = sum(self._estimate(job) for job in jobs)
            if price <= left:
                self._pending.extend(jobs)
                left -= price
            # One finalist on some of its seeds, rather than none on all: a score without a comparison is still an
            # answer.
            elif not self._pending and self._estimate(jobs[0]) <= left:
                affordable = [job for job in jobs if (left := left - self._estimate(job)) >= 0]
                self._pending.extend(affordable)
                left = -1.0
            else:
                self._drop(arm, "no money")

    def _add_seeds(self) -> None:
        """One more seed each for the leader and those within noise of it, while money lasts."""
        finalists = [one for one in self.results if one.fraction == 1 and one.arm.name not in self.dropped]
        # Alone there is nobody to be told apart from; beyond `most_seeds` an interval hardly shrinks.
        if len(finalists) < 2 or finalists[0].seeds >= self.most_seeds or finalists[0].seeds < self.seeds:
            return
        leader = finalists[0]
        close = [f for f in finalists if f is leader or leader.score - f.score <= self.guard * self._noise(leader, f)]
        if len(close) < 2:
            return
        # All of them the same next seed, because differences are taken seed by seed.
        jobs = [RaceJob(one.arm, 1.0, one.seeds) for one in close if one.seeds == leader.seeds]
        left = self.seconds - self.spent_seconds
        # Where the money is short of all, the best ones: a second seed of the last of them would say the least.
        paid = itertools.accumulate(map(self._estimate, jobs))
        affordable = [job for job, seconds in zip(jobs, paid, strict=True) if seconds <= left]
        if len(affordable) > 1:
            self._pending = affordable

    # -- inside: who stays --------------------------------------------------------------------------------------

    def _better_settings(self, arms: list[Arm]) -> list[Arm]:
        """Within each method: one setting in `eta`, and those within noise of the last that stays."""
        kept: list[Arm] = []
        for method in dict.fromkeys(arm.method for arm in arms):
            settings = sorted((arm for arm in arms if arm.method == method), key=self._by_score)
            # Rounded up: a method never leaves the race at the first rung, where it competes with itself only.
            quota = math.ceil(len(settings) / self.eta)
            kept.extend(settings[:quota])
            for arm in settings[quota:]:
                # Measured from the last that stays and not from the leader: what cannot be told from one that stays
                # must stay too.
                if self._behind(settings[quota - 1], arm) <= self.guard:
                    kept.append(arm)
                else:
                    self._drop(
                        arm, f"behind {settings[0].name} at {numbers.percent(self.fractions[self._rung])} of training"
                    )
        return kept

    def _better_arms(self, arms: list[Arm]) -> list[Arm]:
        """Across methods: those within noise and slack of the leader, and the second best method in any case."""
        ordered = self._methods_first(arms)
        # In proportion to what is left to train: at the last rung nothing is to be gained any more.
        gain = self.slack * (1 - self.fractions[self._rung])
        kept = []
        for rank, arm in enumerate(ordered):
            if rank < LEADERS_KEPT or self._behind(ordered[0], arm, gain) <= self.guard:
                kept.append(arm)
            else:
                self._drop(
                    arm, f"behind {ordered[0].name} at {numbers.percent(self.fractions[self._rung])} of training"
                )
        return kept

    def _methods_first(self, arms: list[Arm]) -> list[Arm]:
        """The best arm of each method, best first, then all others, best first."""
        ordered = sorted(arms, key=self._by_score)
        best = {arm.method: arm for arm in reversed(ordered)}
        leaders = [arm for arm in ordered if best[arm.method] is arm]
        return leaders + [arm for arm in ordered if best[arm.method] is not arm]

    def _behind(self, ahead: Arm, arm: Arm, gain: float = 0.0) -> float:
        """By how many standard errors an arm is behind another at this rung, after a gain it may still make."""
        first = self._outcomes[ahead.name, self.fractions[self._rung], 0]
        second = self._outcomes[arm.name, self.fractions[self._rung], 0]
        assert first.score is not None
        assert second.score is not None
        gap = first.score - second.score - gain
        if gap <= 0:
            return 0.0
        # As if the two were independent. On the same validation rows they are not, so true noise is smaller and the
        # guard errs towards keeping.
        noise = math.hypot(first.standard_error, second.standard_error)
        # Without an error of the score (a metric that gives none) any gap counts.
        return gap / noise if noise > 0 else math.inf

    def _noise(self, first: ArmResult, second: ArmResult) -> float:
        """Standard error of the difference of two finalists, from the spread of its seeds."""
        differences = [
            a.score - b.score
            for seed in range(min(first.seeds, second.seeds))
            if (a := self._outcomes.get((first.arm.name, 1.0, seed))) is not None
            and (b := self._outcomes.get((second.arm.name, 1.0, seed))) is not None
            and a.score is not None
            and b.score is not None
        ]
        # One seed shows no spread: whoever has one cannot be told apart from anybody.
        if len(differences) < 2:
            return math.inf
        mean = sum(differences) / len(differences)
        spread = sum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
        return math.sqrt(spread / len(differences))

    # -- inside: money ------------------------------------------------------------------------------------------

    def _estimate(self, job: RaceJob) -> float:
        """Expected seconds, corrected by how wrong the estimates of this method were so far."""
        expected, real = self._ratios.get(job.arm.method, (0.0, 0.0))
        # By sums, so that long runs, which the money goes to, weigh more than short ones.
        return self.cost(job) * (real / expected if expected > 0 else 1.0)

    def _final_reserve(self, arms: list[Arm], seconds: float) -> float:
        """Money of the final: `finalists` arms with all seeds at the mean price, at most two thirds of so many seconds."""
        prices = [sum(self._estimate(RaceJob(arm, 1.0, seed)) for seed in range(self.seeds)) for arm in arms]
        count = min(self.finalists, len(arms))
        # At the mean: reserving for the dearest would starve the rungs, and too little is met by leaving a finalist
        # out.
        wanted = count * sum(prices) / len(prices) if prices else 0.0
        return min(wanted, MOST_RESERVE * seconds)

    def _keep_to_budget(self) -> None:
        """Takes back jobs that no longer fit, the least promising first."""
        while self._pending and sum(map(self._estimate, self._pending)) > self.seconds - self.spent_seconds:
            # Jobs lie in order of promise, so the last one is the least of them.
            last = self._pending.pop()
            if not any(job.arm.name == last.arm.name for job in self._pending) and self._result(last.arm) is None:
                self._drop(last.arm, "no money")

    @staticmethod
    def _round_robin(arms: list[Arm]) -> list[Arm]:
        """Every method's first setting, then every method's second: so that short money leaves no method out."""
        return sorted(arms, key=lambda arm: arm.number)

    def _drop(self, arm: Arm, why: str) -> None:
        # The first reason stays: an arm that was behind is not said to have failed for money later.
        self.dropped.setdefault(arm.name, why)

    def _score(self, arm: Arm) -> float | None:
        outcome = self._outcomes.get((arm.name, self.fractions[self._rung], 0))
        return outcome.score if outcome is not None else None

    def _by_score(self, arm: Arm) -> tuple[float, str]:
        result = self._result(arm)
        return (-result.score if result is not None else math.inf), arm.name

    def _result(self, arm: Arm) -> ArmResult | None:
        for fraction in reversed(self.fractions):
            scores = [
                outcome.score
                for (name, at, _), outcome in self._outcomes.items()
                if name == arm.name and at == fraction and outcome.score is not None
            ]
            if scores:
                return ArmResult(arm, sum(scores) / len(scores), len(scores), fraction)
        return None
