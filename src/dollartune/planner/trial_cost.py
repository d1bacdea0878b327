"""What training and evaluating a method costs, measured on a few steps; and how a search divides its money by that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

BETWEEN = 0.3
"""Seconds per trial for what is neither tuning nor evaluation: attaching, records, adapters that are dropped."""
SPARE = 1.15
"""Measured seconds of training are multiplied by this: machines are not equally fast at all times."""
EVALUATING = 1.3
"""The same for evaluating, where nothing can be left out if it takes longer."""
LEAST_STEPS = 8
"""Fewer optimizer steps teach nothing; before that, seeds are left out."""
LEAST_TRIES = 3
"""A search that can try fewer settings than this is none: the money goes to the final runs."""


@dataclass(frozen=True)
class TrialCost:
    """What one method costs on one backbone, task and scale."""

    steps: int
    """Optimizer steps of the study's whole training; 0 where nothing is trained."""
    seconds_per_step: float
    validations: float
    """Measurements of the validation loss in the whole training."""
    seconds_per_validation: float
    try_seconds: float
    """Evaluating a try, on the validation rows."""
    final_seconds: float
    """Evaluating a final trial, on the test and validation rows, and writing its adapter."""

    def training(self, fraction: float) -> float:
        """Seconds of a fraction of the training."""
        if not self.steps:
            return 0.0
        steps = max(1, round(fraction * self.steps))
        return SPARE * (
            steps * self.seconds_per_step + max(1.0, fraction * self.validations) * self.seconds_per_validation
        )

    def tried(self, fraction: float) -> float:
        """Seconds of a try."""
        return self.training(fraction) + EVALUATING * self.try_seconds + BETWEEN

    def final(self, fraction: float, reserve: float = 0.0) -> float:
        """Seconds of a final trial, of which at least `reserve` (0 to 1) is kept for what follows the training."""
        training = self.training(fraction)
        return max(training / (1 - reserve), training + EVALUATING * self.final_seconds + BETWEEN)

    def longest_final(self, seconds: float, reserve: float = 0.0) -> float:
        """The largest fraction whose final trial takes no longer than that; 0 if there is none."""
        return _largest(lambda fraction: self.final(fraction, reserve) <= seconds)

    def longest_try(self, seconds: float) -> float:
        """The largest fraction whose try takes no longer than that; 0 if there is none."""
        return _largest(lambda fraction: self.tried(fraction) <= seconds)

    @property
    def least(self) -> float:
        """The smallest fraction that is worth a run."""
        return min(1.0, LEAST_STEPS / self.steps) if self.steps else 1.0

    def corrected(self, training: float, evaluating: float) -> TrialCost:
        """The trial_cost by what trials really took: times the measured seconds, for training and for evaluating."""
        scale = dict.fromkeys(("seconds_per_step", "seconds_per_validation"), training)
        scale |= dict.fromkeys(("try_seconds", "final_seconds"), evaluating)
        return replace(self, **{name: factor * getattr(self, name) for name, factor in scale.items()})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest fraction, in thousandths, that fits; fits must be true of all smaller ones too."""
    if fits(1.0):
        return 1.0
    low, high = 0, 1000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle / 1000) else (low, middle)
    return low / 1000


@dataclass(frozen=True)
class Finals:
    """What the final trials of a method get."""

    seeds: int
    fraction: float
    """Of the study's training, each."""

    def seconds(self, trial_cost: TrialCost, reserve: float) -> float:
        return self.seeds * trial_cost.final(self.fraction, reserve)


def finals_for(trial_cost: TrialCost, seconds: float, seeds: int, reserve: float) -> Finals:
    """Final trials for that much money: whole trainings on all seeds; else shorter ones; else fewer seeds."""
    for count in range(seeds, 0, -1):
        fraction = trial_cost.longest_final(seconds / count, reserve)
        if fraction >= trial_cost.least or (count == 1 and fraction > 0):
            return Finals(count, fraction)
    return Finals(1, trial_cost.least)


@dataclass(frozen=True)
class Division:
    """How a method's money is divided between trying settings and the final trials."""

    tries: int
    """Most settings to try; 0: no search."""
    try_fraction: float
    finals: Finals


def divide(trial_cost: TrialCost, seconds: float, seeds: int, most: int, reserve: float) -> Division:
    """Half of the money at least for the final trials, unless whole trainings on all seeds need less.

    Tries are at most as long as a final trial and at least a third of it: short ones would choose settings that learn
    fast, not settings that end well.

    Args:
        seconds: the money; infinity without a limit.
        seeds: wanted for the final trials.
        most: settings to try at most.
    """
    if math.isinf(seconds):
        return Division(most, 1.0, Finals(seeds, 1.0))
    finals = finals_for(trial_cost, min(seconds / 2, seeds * trial_cost.final(1.0, reserve)), seeds, reserve)
    left = seconds - finals.seconds(trial_cost, reserve)
    wanted = max(LEAST_TRIES, min(most, 8))
    longest = trial_cost.longest_try(left / wanted) if most else 0.0
    fraction = min(finals.fraction, max(longest, finals.fraction / 3, min(trial_cost.least, finals.fraction)))
    tries = min(most, int(left / trial_cost.tried(fraction))) if left > 0 else 0
    if tries < min(LEAST_TRIES, most):
        return Division(0, 0.0, finals_for(trial_cost, seconds, seeds, reserve))
    return Division(tries, fraction, finals)
