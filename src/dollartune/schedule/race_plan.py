"""What a race is run for: as many settings and seeds, and runs as long, as the money pays for.

settings of each method ──> a ninth of the longest run ──> the better third: a third of it ──> finalists x seeds
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dollartune.planner.trial_cost import LEAST_STEPS, TrialCost
from dollartune.schedule.successive_halving import ETA, FINALISTS, FRACTIONS

if TYPE_CHECKING:
    from dollartune.schedule.search_space import SearchSpace

LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.064, 0.045, 0.032, 0.023, 0.016, 0.012, 0.009)
"""Lengths of the longest runs that are considered, of the study's training: each is the one before over the square root
of two, as a finer choice would not be seen in a score; the last one is a handful of steps of most trainings."""
LEAST_LENGTH = 1 / 3
"""Rather than shorten runs below that, settings are given up: short runs rank settings by how fast they learn."""
MIDDLE_RUNG = 0.5
"""Of the longest run: a rung that is longer than that saves too little to be run first."""


@dataclass(frozen=True)
class RacePlan:
    """What a race is run for: how many settings and seeds, and how long the longest runs are."""

    settings: int
    seeds: int
    whole: float
    """Share of the study's training that a run of the last rung gets."""
    fractions: tuple[float, ...]
    """Of that, by rung."""


def affordable_plan(
    trial_costs: Mapping[str, TrialCost],
    spaces: Mapping[str, SearchSpace],
    settings: int,
    seeds: int,
    money: float,
    reserve: float,
) -> RacePlan:
    """The most settings and seeds, and the longest runs, that the money pays for; settings are given up first.

    Args:
        trial_costs: what each method costs, of those that could be measured.
        spaces: what may be tried of each method.
        settings: wanted of each method.
        seeds: wanted of each finalist.
        money: in seconds.
        reserve: share (0 to 1) of a final trial's money that is not for tuning.
    """
    # Settings go before seeds: a race between defaults is still a comparison of methods, one on a single seed claims
    # nothing over seeds.
    choices = [(count, seeds) for count in range(settings, 0, -1)]
    choices += [(1, count) for count in range(seeds - 1, 0, -1)]
    least = min((trial_cost.least for trial_cost in trial_costs.values()), default=1.0)
    plan = RacePlan(1, 1, 0.0, (1.0,))
    for settings_now, seeds_now in choices:
        plan = _longest(trial_costs, spaces, settings_now, seeds_now, money, reserve)
        if plan.whole >= (LEAST_LENGTH if settings_now > 1 else least):
            return plan
    return plan


def _longest(
    trial_costs: Mapping[str, TrialCost],
    spaces: Mapping[str, SearchSpace],
    settings: int,
    seeds: int,
    money: float,
    reserve: float,
) -> RacePlan:
    """The longest runs that a race of that size can have; the shortest of all where the money does not even pay for those."""
    counts = {group: _settings_of(spaces[group], settings) for group in trial_costs}
    steps = max((trial_cost.steps for trial_cost in trial_costs.values()), default=0)
    for whole in LENGTHS:
        # Where more arms start than can be finalists one rung must choose among them. Else the final's reserve would be divided
        # among all that began, and nobody would get a whole training.
        fractions = rung_fractions(whole * steps, LEAST_STEPS, sum(counts.values()) > FINALISTS)
        total = 0.0
        for group, trial_cost in trial_costs.items():
            # All settings at the first rung, a third of them at the second. What noise keeps beyond that quota is paid
            # by what the plan did not use.
            rungs = zip((counts[group], math.ceil(counts[group] / ETA)), fractions[:-1], strict=False)
            total += sum(number * trial_cost.tried(whole * fraction) for number, fraction in rungs)
        finals = sorted(trial_cost.final(whole, reserve) for trial_cost in trial_costs.values())
        # The dearest methods, as nobody knows who will come to the final.
        total += seeds * sum(finals[-FINALISTS:])
        if total <= money:
            return RacePlan(settings, seeds, whole, fractions)
    # One rung alone: a race that cannot be paid is not run, and `SuccessiveHalving` says so.
    return RacePlan(settings, seeds, LENGTHS[-1], (1.0,))


def _settings_of(space: SearchSpace, settings: int) -> int:
    """How many settings of a method begin the race, where so many are wanted."""
    if not space.space:
        return 1
    return min(settings, len(space.variants) if space.grid else space.most or settings)


def rung_fractions(steps: float, least: int, must_choose: bool = False) -> tuple[float, ...]:
    """A ninth, a third and all of the longest run; where a ninth has too few steps, as many as a rung must have, and the whole.

    Args:
        steps: of the longest run; 0 where nothing is trained.
        least: of the shortest run that says something.
        must_choose: whether there is a rung before the last one even where it has fewer steps than that.
    """
    first = max(FRACTIONS[0], least / steps) if steps else FRACTIONS[0]
    if first > MIDDLE_RUNG:
        return (MIDDLE_RUNG, 1.0) if must_choose else (1.0,)
    # Rungs that are nearer to each other cost more than the later of them can still tell.
    return (first, *(fraction for fraction in FRACTIONS[1:] if fraction >= ETA * first or fraction == 1))
