"""How fast a cohort trains, and what its planner makes of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dollartune.train.length import Look, Planner

if TYPE_CHECKING:
    from dollartune.train.trial import TrialState

TIMED_STEPS = 4
"""Steps before the planner is asked for the first time: the first one sets things up and is not counted, and of three the mean
is known well enough to begin a warm-up with."""


class Pace:
    """Times steps and looks, and asks the planner when there is something new to say.

    Args:
        planner: see `length.Planner`.
        seconds_left: until training must end.
        clock: seconds that only grow.
        validation_rows: that the last look reads.
        seconds_per_validation_row: as far as it is known; 0: not before the first look.
        cutting: called before trainings whose length is set are cut: as they are then, they can go on with more money.
    """

    def __init__(
        self,
        planner: Planner,
        seconds_left: Callable[[], float],
        clock: Callable[[], float],
        validation_rows: int,
        seconds_per_validation_row: float = 0.0,
        cutting: Callable[[], None] = lambda: None,
    ) -> None:
        self.planner, self.seconds_left, self.clock = planner, seconds_left, clock
        self.validation_rows, self.cutting = validation_rows, cutting
        self._steps: list[tuple[float, float]] = [(0.0, 0.0)]
        """(steps, seconds) after each round, validation not counted."""
        self._looks = 0.0
        """Seconds of looks since the last round."""
        self._per_row = seconds_per_validation_row
        self._before: dict[str, int] = {}
        self._looked = False

    def validated(self, seconds: float, rows: int) -> None:
        """A look of a cohort at so many rows took so long."""
        self._looks += seconds
        self._per_row, self._looked = seconds / max(1, rows), True

    def stepped(self, running: Sequence[TrialState], seconds: float) -> None:
        """A round of the trials took so long, looks included; their ends are moved where the planner says so."""
        steps = [trial.progress.step - self._before.get(trial.name, 0) for trial in running]
        if (
            not self._before
        ):  # the first round sets kernels and memory up; a resumed one would count what was done before
            steps = []
        self._before |= {trial.name: trial.progress.step for trial in running}
        if any(steps):
            count, took = self._steps[-1]
            self._steps.append((count + sum(steps) / len(steps), took + max(0.0, seconds - self._looks)))
        self._looks = 0.0
        going = [trial for trial in running if not trial.done]
        if not going or len(self._steps) < 2:
            return
        (before, _), (timed, _) = self._steps[-2:]
        # True in the one round in which the count of timed steps is reached, whatever number of steps a round has.
        first = before < TIMED_STEPS - 1 <= timed
        # in the decay at every step: it may still have to end sooner; and it may have to begin, where the length is set
        last_moment = any(trial.decaying or trial.about_to_decay for trial in going)
        last_moment |= timed >= TIMED_STEPS - 1 and not all(trial.from_money for trial in going)
        if first or self._looked or last_moment:
            self._looked = False
            self._plan(going)

    def look_seconds(self) -> float:
        """What one more look of one trial at all rows takes."""
        return self._per_row * self.validation_rows

    def seconds_per_step(self) -> float:
        """Over the later half of the steps: the machine's load changes, and batches differ in length."""
        steps, seconds = self._steps[-1]
        # Half, not the last few: a single slow batch must not move the end of training.
        since = steps - max(steps / 2, TIMED_STEPS - 1)
        # Searched, as it is asked at every step of what may be a hundred thousand.
        count, took = self._steps[max(0, bisect_right(self._steps, (since, math.inf)) - 1)]
        return max((seconds - took) / (steps - count), 1e-9)  # a clock that stood still must not mean endless steps

    def _plan(self, going: Sequence[TrialState]) -> None:
        each, left = self.seconds_per_step(), self.seconds_left()
        for trial in going:
            decaying = not trial.can_extend if trial.from_money else bool(trial.progress.ending)
            look = Look(
                trial.progress.step, trial.total_steps, decaying, each, self._per_row, left,
                trial.settings.batch_size, min(self.validation_rows, trial.settings.validation_rows),
                None if trial.from_money else trial.steps_between_validations,
            )  # fmt: skip
            total = max(trial.progress.step + 1, self.planner(look))
            if not trial.from_money:
                if total != trial.total_steps:
                    self.cutting()
                    trial.cut(total)
            elif trial.can_extend or (trial.can_shorten and total < trial.total_steps):
                trial.replan(total)
