"""The schedule of the learning rate.

factor 1 │   ╱╲             linear: warm-up, then in a straight line to 0 after the last step
         │  ╱   ╲           (or along a cosine, or staying at 1)
         │ ╱      ╲
       0 └─────────────> step

factor 1 │   ╱‾‾‾‾‾‾‾╲      wsd: warm-up, stable, decay over the last fifth along 1 - √progress; the end may be moved
         │  ╱         ╲     until the decay begins
         │ ╱           `-_
       0 └────────────────> step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dollartune.train.length import Replan

Schedule = Literal["linear", "cosine", "constant", "wsd"]

DECAY_SHARE = 0.2
"""Of all steps. Hägele et al. 2024 ("Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 4 and
figure 5): a decay over 10 to 20 % of the steps reaches a tuned cosine of the same length; 20 % is the safe end of that."""


def learning_rate_factor(step: int, plan: Sequence[Replan], schedule: Schedule, warmup: float) -> float:
    """Factor of the peak learning rate, from 0 to 1.

    Args:
        step: optimizer steps that are done.
        plan: how many steps training was to have, as it was decided on the way; the last one made so far counts.
        warmup: share of the steps in which the rate rises.
    """
    total, rising = plan[-1].total_steps, warmup_steps(plan, warmup)
    # n steps of warm-up pass 1/(n+1) ... n/(n+1), and the peak is that of the step after them.
    if step < rising:
        return (step + 1) / (rising + 1)  # not from 0: a first step at rate 0 would be a batch for nothing
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        # 1 - √p falls fast at first and slowly to its end; better than a straight line in Hägele et al. 2024, figure 5
        return 1.0 - math.sqrt(decay_progress(step, plan))
    # Once the rate falls its end is where it is. Where the money ends before, the rate falls as with wsd beside that.
    total = [replan.total_steps for replan in plan if replan.step <= rising][-1]
    cuts = [replan for replan in plan if replan.step > rising]
    paid = 1.0 - math.sqrt(decay_progress(step, [replace(plan[0], total_steps=2 * total), *cuts])) if cuts else 1.0
    left = (total - step) / max(1, total - rising)  # 1 after the warm-up; the last step still moves by 1 / total
    return paid * (left if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left))))


def warmup_steps(plan: Sequence[Replan], warmup: float) -> int:
    """Steps of the warm-up. It follows the plan until it is over: a longer total later must not begin it again."""
    steps = int(plan[0].total_steps * warmup)
    for replan in plan[1:]:
        if replan.step < steps:
            steps = int(replan.total_steps * warmup)
    return steps


def decay_progress(step: int, plan: Sequence[Replan]) -> float:
    """How far the decay of `wsd` has come after a step: 0 before it begins, 1 at the end.

    A plan made within the decay divides what is left of it over the steps that are left.
    """
    progress, since = 0.0, 0
    begin = _decay_begin(plan[0])
    total = plan[0].total_steps
    for replan in plan[1:]:
        progress += (1 - progress) * _share(replan.step, max(begin, since), total)
        since, total = replan.step, replan.total_steps
        # Once the rate falls it never rises again: another peak would throw away what the decay has settled.
        begin = since if progress > 0 else max(since, _decay_begin(replan))
    return progress + (1 - progress) * _share(step, max(begin, since), total)


def _decay_begin(plan: Replan) -> int:
    return plan.total_steps - max(1, round(DECAY_SHARE * plan.total_steps))


def _share(step: int, begin: int, end: int) -> float:
    """Of the way from begin to end, from 0 to 1."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
