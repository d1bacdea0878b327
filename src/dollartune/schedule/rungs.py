"""Short runs first, where the money pays for many: a race of all further settings, for the anytime scheduler.

    main run ──> money for several more runs? ──no──> one setting after the other, each for its whole length
                            │ yes
                            └──> rungs: every setting a little, the better ones more (`successive_halving`)

The race is what it was told, so nothing of it lies on disk but what it began with; runs and their outcomes say the rest.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dollartune.engines.base import EVALUATION_SECONDS
from dollartune.errors import UserError

# Not for types alone: the state file is read by these annotations.
from dollartune.schedule.first_settings import Setting  # noqa: TC001
from dollartune.schedule.race_plan import rung_fractions
from dollartune.schedule.run_cost import PLAN_MARGIN
from dollartune.schedule.successive_halving import (
    COMPARABLE,
    FINALISTS,
    MOST_SEEDS_FACTOR,
    Arm,
    JobOutcome,
    RaceJob,
    SuccessiveHalving,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dollartune.schedule.anytime_state import Run, RunOutcome
    from dollartune.schedule.run_cost import RunCost
    from dollartune.schedule.run_history import RunHistory

MANY_RUNS = 3.0
"""Whole runs that the rest of the money must pay for: with fewer, the reserve of the last rung leaves the first one four
settings, and trying these one by one says as much."""
LEAST_RUNG_STEPS = 50
"""In fewer steps the highest rate is ahead, whatever comes later: of LoRA on 175 rows of SST-2 (MiniLM) the rule's rate had 0.526
right after 12 steps and three times it 0.789; after 37 that had fallen to 0.632."""
LEAST_SETTINGS = 3
"""Fewer are tried one by one: there is nothing to sift."""
SEEDS = 1
"""Of a finalist, to begin with: one adapter is handed over, and seeds are added while finalists cannot be told apart."""


@dataclass
class RungsState:
    """What a race began with, on disk."""

    settings: list[Setting]
    """In the order of prior evidence."""
    best: str | None
    """The trial that was best by then: its setting comes in at the last rung. None where nothing was trained whole."""
    steps: int
    """Of a whole run."""
    seconds: float
    """For all of it."""
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    """By method, as expected when it began, before a run of the race has told it."""
    seconds_beside: dict[str, float] = field(default_factory=dict)
    """By method, what a run takes once."""

    @classmethod
    def begin(
        cls, settings: Sequence[Setting], best: str | None, steps: int, seconds: float, cost: RunCost
    ) -> RungsState:
        """With what runs are expected to cost now.

        Args:
            settings: those that wait.
            best: the best trial that was trained whole, if any was.
            steps: of a whole run.
            seconds: that may be spent.
        """
        state = cls(list(settings), best, steps, seconds)
        for method in cost.history.spaces:
            state.seconds_beside[method] = cost.seconds_of(method, 0)
            state.seconds_per_step[method] = cost.seconds_of(method, 1) - state.seconds_beside[method]
            if (seen := cost.history.seen(method)) is not None:
                state.take(method, seen)
        return state

    def take(self, method: str, seen: RunOutcome) -> None:
        """What a run of a method took: once, and by steps. Runs of a race differ in their lengths ninefold."""
        self.seconds_beside[method] = EVALUATION_SECONDS + seen.seconds - seen.training_seconds
        self.seconds_per_step[method] = PLAN_MARGIN * seen.training_seconds / seen.steps

    def seconds_of(self, method: str, steps: int) -> float:
        """What so many steps of a method are expected to take."""
        return self.seconds_beside[method] + steps * self.seconds_per_step[method]


def rungs_of(steps: int, least_steps: int) -> tuple[float, ...]:
    """Lengths of the race's runs, as shares of a whole one of so many steps."""
    return rung_fractions(steps, max(LEAST_RUNG_STEPS, least_steps))


class Rungs:
    """The race, brought to where the runs of a history left it.

    Args:
        state: what it began with.
        least_steps: of the shortest rung.
    """

    def __init__(self, state: RungsState, history: RunHistory, least_steps: int) -> None:
        self.state, self.history = state, history
        # Brought up to date by runs in their order, so that a race that was killed expects the same.
        self._expected = deepcopy(state)
        best = [run for run in history.state.runs if history.name(run) == state.best]
        counted: dict[str, int] = {}
        self._settings: dict[Arm, Setting] = {}
        for setting in (*(run.setting for run in best), *state.settings):
            number = counted[setting.method] = counted.get(setting.method, -1) + 1
            self._settings[Arm(setting.method, {}, number)] = setting
        fractions = rungs_of(state.steps, least_steps)
        # Where no rung compares methods with each other each has a finalist, and the final's money is for so many.
        methods = len({setting.method for setting in state.settings})
        compared = any(fraction >= COMPARABLE for fraction in fractions[:-1])
        finalists = FINALISTS if compared else max(FINALISTS, methods)
        self.race = SuccessiveHalving(
            list(self._settings)[len(best) :], self._cost, state.seconds, fractions=fractions, seeds=SEEDS,
            most_seeds=self._most_seeds(), finalists=finalists, known=self._known(best, fractions[0]),
        )  # fmt: skip
        self._told = 0

    def next(self) -> tuple[Setting, int, int, float] | None:
        """(setting, seed, steps, fraction of a whole run) of what is run next; None when the race is over."""
        self._catch_up()
        job = self.race.next()
        if job is None:
            return None
        seed = self.history.cell.seed(job.arm.method, job.seed)
        return self._settings[job.arm], seed, self._steps(job), job.fraction

    def waiting(self) -> int:
        """Settings that are in the race and have not been trained whole."""
        self._catch_up()
        whole = {told.arm for told in self.race.told if told.fraction == 1}
        return sum(arm.name not in self.race.dropped and arm.name not in whole for arm in self.race.arms)

    def _known(self, best: Sequence[Run], first: float) -> dict[RaceJob, JobOutcome]:
        """What need not be run again: the best whole run, and the first adapter's, which is as long as one of the first rung."""
        known = {}
        for run in self.history.state.runs:
            outcome = self.history.state.outcomes.get(self.history.name(run))
            arm = next((arm for arm, setting in self._settings.items() if setting == run.setting), None)
            if arm is None or outcome is None or outcome.score is None:
                continue
            job = RaceJob(arm, 1.0 if run in best else first, 0)
            if run in best or (run.stage == "early" and outcome.steps == self._steps(job)):
                known[job] = JobOutcome(outcome.score, outcome.seconds, outcome.standard_error)
        return known

    def _catch_up(self) -> None:
        runs = [run for run in self.history.state.runs if run.stage == "rung"]
        for run in runs[self._told :]:
            self._tell(run)

    def _tell(self, run: Run) -> None:
        job = self.race.next()
        # Runs were decided one by one, each as the race's next job, so that the order of the history is that of the race.
        if job is None or self._settings[job.arm] != run.setting:
            raise UserError(
                "the runs on disk are not those that this race would have asked for.", "Run again with --fresh."
            )
        outcome = self.history.outcome(run)
        if outcome.steps and outcome.training_seconds:
            self._expected.take(run.setting.method, outcome)
        self.race.tell(job, outcome.score, outcome.seconds, outcome.standard_error)
        self._told += 1

    def _most_seeds(self) -> int:
        return MOST_SEEDS_FACTOR * min(len(self.history.seeds(setting.method)) for setting in self.state.settings)

    def _steps(self, job: RaceJob) -> int:
        return max(1, round(job.fraction * self.state.steps))

    def _cost(self, job: RaceJob) -> float:
        method = job.arm.method
        return self._expected.seconds_of(method, self._steps(job))
