"""What a run costs, and what is left to pay it with: steps of a method for seconds, and seconds for steps.

    all of the budget = spent | training or searching | evaluating the test rows | what follows the study

A step costs what it cost in the latest run of the method; before one was seen, what a row takes forwards says it to a factor
of two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dollartune.engines.base import EVALUATION_MARGIN, EVALUATION_SECONDS
from dollartune.methods.registry import reference
from dollartune.planner.trial_cost import BETWEEN_SECONDS, LEAST_STEPS
from dollartune.schedule.scheduler import Account
from dollartune.train.length import steps_by_rows

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.schedule.anytime_state import AnytimeState
    from dollartune.schedule.run_history import RunHistory
    from dollartune.train.settings import TrainingSettings

TEST_SHARE = 0.05
"""Of all the money, so much is kept for evaluating the test rows. What training leaves is added to it: fewer than all rows are
evaluated only where that is not enough."""
PLAN_MARGIN = 1.08
"""Seconds that were seen, times this: another run's rows and a machine that others use too make it some hundredths slower."""
STEP_ROWS = 3.5
"""A row costs so many times as much in a training step as forwards alone: backwards is two forwards, the optimizer and looks at
validation rows are the rest. Only until a run of the method has been seen, and only to decide whether and what to train: how long
a run is, its time limit decides (`train.length`)."""
STEP_SECONDS_PER_NUMBER = 1.7e-9
"""Of a step, for each number that full tuning trains, beside what its rows cost: its gradient is zeroed, clipped and read by
AdamW with two moments. On two cores 0.04 s for MiniLM's 23 M, as much as the forward pass of 16 short rows."""
UPPER_COST = 0.55
"""A step of the upper half over one of all layers: half of the passes both ways, and the optimizer's part."""
UPPER_FILL = 0.6
"""Forwards of a row that what lies below them costs once: half of the layers, of validation rows (15 % of the data) too."""
LEAST_EPOCHS = 0.3
"""Below so many passes over the rows nothing was seen to come near the solved probe. Above it the run costs money that nothing
else could use, and is taken only where it is better."""
LEAST_SHARE = 0.075
"""Where rows are many, so much of the steps that they can use (`train.length`) will do: seen were 1,400 rows, of which it is 0.3
passes. A hundredth of a pass over a million rows is more training than three passes over a thousand."""
NO_LIMIT_STEPS = 10**9
"""What is affordable without a budget: more than any useful length."""


class RunCost:
    """Seconds of one cell's runs, and the money that is there for them. Reads the scheduler's state and changes nothing."""

    def __init__(self, training: TrainingSettings, ledger: Ledger, state: AnytimeState, history: RunHistory) -> None:
        self.training, self.ledger, self.state, self.history = training, ledger, state, history

    # What is there

    def total_seconds(self) -> float:
        """All of the budget, what was spent before this cell began included."""
        assert self.state.account is not None
        return self.state.account.seconds + self.state.account.began

    def left(self) -> float:
        """What may still be spent, on the evaluation in the end too."""
        assert self.state.account is not None, "begin() comes first"
        return Account(self.ledger, None, self.state.account).left()

    def test_seconds(self) -> float:
        """What evaluating the adapter in the end takes."""
        each, total = self.state.seconds_per_test_row, self.total_seconds()
        rows = self.state.test_rows
        if each > 0 and not math.isinf(total):
            rows = min(rows, int(TEST_SHARE * total / each))
        return EVALUATION_MARGIN * rows * each + EVALUATION_SECONDS

    def training_seconds(self) -> float:
        """What may be trained with now."""
        return self.left() - self.test_seconds() - BETWEEN_SECONDS

    # What a run takes

    def steps_in(self, method: str, seconds: float) -> int:
        """Optimizer steps of a method that fit, validation on the way and evaluation after it included."""
        # What is taken once comes off first; with nothing left for steps there is no run, however cheap a step is.
        rest, each = seconds - self._beside_steps(method), PLAN_MARGIN * self.seconds_per_step(method)
        if rest <= 0:
            return 0
        return NO_LIMIT_STEPS if math.isinf(rest) or each == 0 else int(rest / each)

    def seconds_of(self, method: str, steps: int) -> float:
        """What so many steps of a method take, with all that belongs to a run."""
        return PLAN_MARGIN * steps * self.seconds_per_step(method) + self._beside_steps(method)

    def seconds_per_step(self, method: str) -> float:
        """With looks and the evaluation after it: as seen in the latest run of the method, else by what a row takes forwards."""
        if (seen := self.history.seen(method)) is not None:
            return (seen.seconds if self._scores_beside(method) else seen.training_seconds) / seen.steps
        share = UPPER_COST if method == reference("upper_layers").name else 1.0
        rows = STEP_ROWS * self.training.batch_size * self._row_seconds()
        # LoRA and its like train a hundredth of the numbers: their optimizer is not seen beside the rows
        whole = method in (reference("everything").name, reference("upper_layers").name)
        return share * (rows + (STEP_SECONDS_PER_NUMBER * self.history.parameters() if whole else 0.0))

    def _beside_steps(self, method: str) -> float:
        """What a run takes once, however long it is."""
        if self._scores_beside(method):  # in its seconds per step is all but the writing
            return EVALUATION_SECONDS
        seconds = EVALUATION_SECONDS + EVALUATION_MARGIN * self.state.validation_rows * self.state.seconds_per_row
        upper = method == reference("upper_layers").name and self.history.seen(method) is None
        return seconds + (UPPER_FILL * self.history.rows() * self._row_seconds() if upper else 0.0)

    def _scores_beside(self, method: str) -> bool:
        """Whether a step's seconds have the run's scores in them: not before one was seen, nor where texts are written for each
        row, which takes as long as many steps and is done once."""
        return self.history.seen(method) is not None and not self._writes()

    def _row_seconds(self) -> float:
        """Of a row forwards. Where texts are written a row's score takes many passes, and a step tells it better."""
        seen = self.history.latest_trained() if self._writes() else None
        if seen is None:
            return self.state.seconds_per_row
        return seen.training_seconds / (seen.steps * STEP_ROWS * self.training.batch_size)

    def _writes(self) -> bool:
        """Whether rows may be scored by texts that are written for them: a task that a solved method could answer has labels."""
        return all(run.stage != "probe" for run in self.state.runs)

    # What a run can use

    def epoch_steps(self) -> int:
        return math.ceil(self.history.rows() / self.training.batch_size)

    def least_steps(self) -> float:
        """Below which a training is not worth its seconds beside a solved probe."""
        by_rows = steps_by_rows(self.history.rows(), self.training.batch_size)
        return min(LEAST_EPOCHS * self.epoch_steps(), LEAST_SHARE * by_rows)

    def useful_steps(self) -> int:
        """What a training of so many rows can use, as one without a budget would have."""
        return max(LEAST_STEPS, self.training.steps_for(self.history.rows()))
