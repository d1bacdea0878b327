"""How long a trial trains: steps by rows without a budget, and a plan that money may change while training goes on.

    steps      given, or by rows: `steps_by_rows`
    from money a plan  (0, 350) ─ look at step 20: (20, 610) ─ look at 28: (28, 580) ─ ... ─ the decay begins ─ end
                                             └ a planner is told seconds per step and seconds left, and answers the new total

While the rate is still up (warm-up, stable), moving the end costs nothing. Once the decay has begun the end may only come nearer:
what is left of the decay is then walked in fewer steps, so that training always ends decayed. A training whose length is set
keeps to it, and decays early where the money ends before (`end_decayed`). Every change is written down as (step, total):
training by the same list makes the same steps, whatever the clock says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from dollartune.train.lr_schedule import DECAY_SHARE

_STEPS_OF_ONE_ROW = 4.5
_POWER_OF_ROWS = 0.6
"""Steps of 16 rows = 4.5 rows^0.6: 71 steps for 100 rows, 284 for 1,000, 347 for 1,400, 1,130 for 10,000. The coefficients go
through what reference 001 (A.2) trains at its two lower scales, ten epochs of 100 rows and five of 1,000 (70 and 315 steps of
16), without its fall to a fifth at row 1,001. More rows need more steps, but fewer passes over each: it lies between "the same
steps" (power 0) and "the same epochs" (power 1), and 0.6 is the slope between those two."""
_ROWS_OF_A_STEP = 16
"""Rows of a step in those figures. Other batches see as many rows in all."""

FIRST_LOOK = 20
"""Steps before the first validation of a training whose length comes from money: before, little but the warm-up is over."""
_GROWS_BY, _WHILE = 7, 5
"""Each look comes 1.4 times as late as the one before (whole numbers, so that every machine rounds alike). A run of n steps has
about 3 ln(n / 20) looks: a long run spends no larger share on looking than a short one, and the best state is at most a third of
the run away from a look."""
BLOCK_ROWS = 64
"""Looks read validation rows in blocks of so many, always the same ones first: two looks are compared on the blocks of both."""
_TRAINED_OVER_READ = 3.0
"""Seconds of a row trained over those of a row forward: the backward pass is two more of the forward's products."""
_ROWS_LOOKED_AT = 0.1
"""Validation rows of a look over rows trained on so far: a row forward costs a third of a row trained, and 0.3 of all rows were
trained since the look before, so a look takes about a tenth of the time in between."""


def steps_by_rows(rows: int, batch_size: int) -> int:
    """Optimizer steps for a number of training rows where neither epochs nor a budget decide; at least one pass over the rows.

    It grows with the rows and never falls. Early stopping ends what does not need them.
    """
    steps: float = _STEPS_OF_ONE_ROW * rows**_POWER_OF_ROWS * _ROWS_OF_A_STEP / batch_size
    return max(math.ceil(steps), math.ceil(rows / batch_size))


def epochs_of_reference_001(rows: int) -> int:
    """Epochs of reference 001 (A.2), for studies that repeat it: 10 up to 100 rows, 5 up to 1,000 and 1 beyond."""
    return 10 if rows <= 100 else 5 if rows <= 1000 else 1


def look_steps() -> Iterator[int]:
    """Steps after which a training whose length comes from money is validated: 20, 28, 40, 56, 79 ..."""
    step = FIRST_LOOK
    while True:
        yield step
        # Rounded up, in whole numbers.
        step = -(-step * _GROWS_BY // _WHILE)


def is_look(step: int) -> bool:
    """Whether there is a look after this step."""
    return next(at for at in look_steps() if at >= step) == step


def look_rows(step: int, batch_size: int) -> int:
    """Validation rows of a look after a step, before the study's own limit."""
    return BLOCK_ROWS * max(1, math.ceil(_ROWS_LOOKED_AT * step * batch_size / BLOCK_ROWS))


@dataclass(frozen=True)
class Replan:
    """From this step on, training is to have so many steps in all."""

    step: int
    """Optimizer steps that were done when it was decided; 0 for the first plan."""
    total_steps: int


@dataclass(frozen=True)
class Look:
    """What a planner is told of a cohort in training."""

    step: int
    """Optimizer steps that are done, of the trial that has most before it."""
    total_steps: int
    """As planned until now."""
    decaying: bool
    """Whether the learning rate is falling already: the answer may then be smaller, not larger."""
    seconds_per_step: float
    """Of the whole cohort, over the later half of its steps; validation is not in it."""
    seconds_per_validation_row: float
    """The same for one validation row of every trial; 0 before the first look, where it is taken from the steps."""
    seconds_left: float
    """Until training must end."""
    batch_size: int
    validation_rows: int
    """Most rows of a look; the last one reads them all."""
    every: int | None = None
    """Steps from one look at all rows to the next, where the length is set; None: looks come at growing steps."""

    def seconds(self, total_steps: int) -> float:
        """What is still to come would take in a training of so many steps."""
        return (total_steps - self.step) * self.seconds_per_step + self.validation_seconds(total_steps)

    def validation_seconds(self, total_steps: int) -> float:
        """What the looks that are still to come would take in a training of so many steps: those at growing steps, and in the end
        all rows for the last state, for the best one before it and for the average of the decay's states. Where the length is
        set, one of all rows every so many steps and at the end."""
        if self.every is not None:
            rows = self.validation_rows * (-(-total_steps // self.every) - self.step // self.every)
        else:
            rows = 3 * self.validation_rows
            for at in takewhile(lambda at: at < total_steps, look_steps()):
                if at > self.step:
                    rows += min(self.validation_rows, look_rows(at, self.batch_size))
        row = self.seconds_per_validation_row or self.seconds_per_step / self.batch_size / _TRAINED_OVER_READ
        return rows * row


Planner = Callable[[Look], int]
"""Asked after a few steps, at each look and while the rate decays; answers how many steps training is to have in all."""

_SPARE = 0.02
"""Share of the seconds left that a plan leaves alone: steps differ by the lengths of their rows. Each look plans again with what
is left by then, so what stays unused in the end is a fiftieth of the decay, not of the whole."""
_WORTH_MOVING = 0.1
"""Of the steps that are left in a decay that ends with the money, from so many more on its end is moved away."""


def fill_time(look: Look) -> int:
    """The planner that uses the time limit: as many steps as the seconds left pay for, looks included.

    In the decay it shortens only where the end would come too late.
    """
    if math.isinf(look.seconds_left):
        return look.total_steps
    # The whole of it, without the spare share: a decay that fits is not shortened for being tight.
    if look.decaying and look.seconds(look.total_steps) <= look.seconds_left:
        return look.total_steps
    return _affordable(look)


def end_decayed(look: Look) -> int:
    """The planner of a training whose length is set: its steps as they are, as long as the seconds left pay for them. Where they
    do not, it ends with the money, and the rate falls to 0 over the last fifth of the steps that are paid for.

    When the money ends is known by the pace alone, which may change: the end then moves with it, both ways.
    """
    if math.isinf(look.seconds_left):
        return look.total_steps
    fits, paid = look.seconds(look.total_steps) <= look.seconds_left, _affordable(look)
    if not look.decaying:
        return look.total_steps if fits or look.step < (1 - DECAY_SHARE) * paid else paid
    # Not for each step more or less: every change stands in the record.
    further = paid - look.total_steps > _WORTH_MOVING * (look.total_steps - look.step)
    return paid if not fits or further else look.total_steps


def _affordable(look: Look) -> int:
    """Steps in all that the seconds left pay for, looks included; at least one more."""
    usable = (1 - _SPARE) * look.seconds_left
    # looks come in jumps as the total grows, so the largest total that is paid for is sought, not solved for
    least, most = look.step + 1, max(look.step + 1, look.step + int(usable / look.seconds_per_step))
    while least < most:
        total = (least + most + 1) // 2
        least, most = (total, most) if look.seconds(total) <= usable else (least, total - 1)
    return least


def at_most(planner: Planner, steps: int) -> Planner:
    """A planner that never trains for more steps than that: the incumbent's useful length, for example."""
    return lambda look: min(planner(look), steps)
