"""What a search is run for: how many settings, how long, and which final trials the money then pays for.

account of a method ──> final trials: half of it at least ──> the rest: search trials a third to all as long
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.planner.trial_cost import TrialCost

LEAST_SEARCH_TRIALS = 3
"""A search that can try fewer settings than this is none: the default and two others choose hardly better than the
default alone, so the money goes to the final trials."""
WANTED_SEARCH_TRIALS = 8
"""So many settings are enough to make search trials longer with what is left, rather than to try still more."""
FINALS_SHARE = 0.5
"""Of the money, at least so much is for the final trials: they are the result, and the search only chooses among them."""
SHORTEST_SEARCH_TRIAL = 1 / 3
"""Of a final trial's length. Shorter ones would choose settings that learn fast, not settings that end well."""


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
    # From all seeds down, each with the longest training that it leaves: seeds are given up last, because one seed
    # claims nothing over seeds, and a short training still ends its learning-rate schedule.
    for count in range(seeds, 0, -1):
        fraction = trial_cost.longest_final(seconds / count, reserve)
        if fraction >= trial_cost.least or (count == 1 and fraction > 0):
            return Finals(count, fraction)
    # Not payable either. The trial is refused when it asks for its time limit, and its record says why.
    return Finals(1, trial_cost.least)


@dataclass(frozen=True)
class SearchPlan:
    """How a method's account is divided between search trials and final trials."""

    search_trials: int
    """Most settings to try; 0: no search."""
    fraction: float
    """Of the study's training, each."""
    finals: Finals


def affordable_search(trial_cost: TrialCost, seconds: float, seeds: int, most: int, reserve: float) -> SearchPlan:
    """The search that the money pays for beside the final trials; whole trainings on all seeds may need less than half.

    Args:
        seconds: the money; infinity without a limit.
        seeds: wanted for the final trials.
        most: settings to try at most.
        reserve: share (0 to 1) of a final trial's money that is not for tuning.
    """
    if math.isinf(seconds):
        return SearchPlan(most, 1.0, Finals(seeds, 1.0))
    # A cheap method needs less than half for whole trainings on all seeds; the search gets the rest.
    finals_seconds = min(FINALS_SHARE * seconds, seeds * trial_cost.final(1.0, reserve))
    finals = finals_for(trial_cost, finals_seconds, seeds, reserve)
    left = seconds - finals.seconds(trial_cost, reserve)
    # First as many settings as matter, then longer trials, and only with those as long as finals still more settings.
    wanted = max(LEAST_SEARCH_TRIALS, min(most, WANTED_SEARCH_TRIALS))
    longest = trial_cost.longest_try(left / wanted) if most else 0.0
    shortest = max(SHORTEST_SEARCH_TRIAL * finals.fraction, min(trial_cost.least, finals.fraction))
    # Never longer than the finals: the search would cost more than what it chooses for.
    fraction = min(finals.fraction, max(longest, shortest))
    count = min(most, int(left / trial_cost.tried(fraction))) if left > 0 else 0
    if count < min(LEAST_SEARCH_TRIALS, most):
        # The finals get the search's money too.
        return SearchPlan(0, 0.0, finals_for(trial_cost, seconds, seeds, reserve))
    return SearchPlan(count, fraction, finals)
