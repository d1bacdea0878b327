"""How fast a cohort trains, and what its planner makes of it."""

from __future__ import annotations

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
    """

    def __init__(
        self,
        planner: Planner,
        seconds_left: Callable[[], float],
        clock: Callable[[], float],
        validation_rows: int,
        seconds_per_validation_row: float = 0.0,
    ) -> None:
        self.planner, self.seconds_left, self.clock = planner, seconds_left, clock
        self.validation_rows = validation_rows
        self._steps: list[tuple[float, float]] = []
        """(steps, seconds) of each round, validation not counted."""
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
            self._steps.append((sum(steps) / len(steps), max(0.0, seconds - self._looks)))
        self._looks = 0.0
        going = [trial for trial in running if not trial.done]
        if not going or not self._steps:
            return
        timed = sum(count for count, _ in self._steps)
        # True in the one round in which the count of timed steps is reached, whatever number of steps a round has.
        first = timed >= TIMED_STEPS - 1 and timed - self._steps[-1][0] < TIMED_STEPS - 1
        # in the decay at every step: it may still have to end sooner
        last_moment = any(trial.decaying or trial.about_to_decay for trial in going)
        if first or self._looked or last_moment:
            self._looked = False
            self._plan(going)

    def look_seconds(self) -> float:
        """What one more look of one trial at all rows takes."""
        return self._per_row * self.validation_rows

    def seconds_per_step(self) -> float:
        """Over the later half of the steps: the machine's load changes, and batches differ in length."""
        # Half, not the last few: a single slow batch must not move the end of training.
        half = sum(count for count, _ in self._steps) / 2
        count = seconds = 0.0
        for steps, took in reversed(self._steps):
            count, seconds = count + steps, seconds + took
            if count >= half and count >= TIMED_STEPS - 1:
                break
        return max(seconds / count, 1e-9)  # a clock that stood still must not mean endless steps

    def _plan(self, going: Sequence[TrialState]) -> None:
        each, left = self.seconds_per_step(), self.seconds_left()
        for trial in going:
            look = Look(
                trial.progress.step, trial.total_steps, not trial.can_extend, each, self._per_row, left,
                trial.settings.batch_size, min(self.validation_rows, trial.settings.validation_rows),
            )  # fmt: skip
            total = max(trial.progress.step + 1, self.planner(look))
            if trial.can_extend or (trial.can_shorten and total < trial.total_steps):
                trial.replan(total)
