"""When each stage of a cohort must have ended: moments at which so much of an account is left as belongs to others.

    account  |--- others' ---|---------------- this cohort's time limit ----------------|
                             |  load  |  train                | evaluate, export, write  |
                                                    training_end                 limit_end

Training asks its end before each step, and what is solved before each stage of its features (`features_left`).
What is without steps runs inside `until_spent`, which interrupts it only when the whole account is used up: what others left may
be used to end what has begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune.budget.deadline import Deadline, closing_seconds, until
from dollartune.engines.base import (
    Cohort,
    EvaluationCost,
    TimeLimit,
    evaluation_seconds,
    scored_beside,
    validation_rows,
)
from dollartune.engines.measure_cost import WRITING
from dollartune.train.features import read_of
from dollartune.train.rows_in_time import fresh_counts
from dollartune.train.solve import solve_seconds

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.engines.trial_context import TrialContext
    from dollartune.train.rows_in_time import SecondsLeft
    from dollartune.train.trial import TrialState
    from dollartune.trials.trial import Trial


class StageLimits:
    """Ends of the stages of a worker's cohorts.

    Args:
        ledger: where the worker books its time.
    """

    def __init__(self, settings: StudySettings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.limited = ledger.limit_seconds is not None or ledger.limit_dollars is not None

    def until_spent(self, trial: Trial, what: str) -> AbstractContextManager[None]:
        """Ends what runs inside when the money of a trial's account is spent, wherever it is just then."""
        # Of the whole account and not of the cohort's limit: what has begun may use what others left.
        deadline = self.ledger.deadline(closing_seconds(), trial.variant.group) if self.limited else None
        return until(
            deadline, f"the budget was used up {what}. With a larger budget the same command goes on from there."
        )

    def left(self, trial: Trial) -> float:
        """Seconds of a trial's account after which `until_spent` interrupts; infinity without a limit."""
        if not self.limited:
            return math.inf
        return self.ledger.remaining(trial.variant.group) - closing_seconds()

    def limit_end(self, limit: TimeLimit) -> Deadline | None:
        """The moment at which a time limit that began now is used up; None without one."""
        if math.isinf(limit.seconds):
            return None
        # A deadline is a reserve of the ledger: what must be left of the account when the limit is used up.
        return self.ledger.deadline(max(0.0, self.ledger.remaining(limit.method) - limit.seconds), limit.method)

    def training_end(
        self, cohort: Cohort, context: TrialContext, limit: TimeLimit, states: Sequence[TrialState]
    ) -> Deadline | None:
        """The moment at which training must end for the rest of the time limit to pay for evaluating and writing. None
        without a limit."""
        if math.isinf(limit.seconds):
            return None
        # one more validation, which may just have begun, and the checkpoint that training ends with
        kept = self._after_training(cohort, context.costs(), limit)
        kept += context.seconds_per_validation + WRITING * sum(state.adapter.count() for state in states)
        # Of the account, `remaining - limit` belongs to other cohorts, and `kept` to what follows the training.
        return self.ledger.deadline(self.ledger.remaining(limit.method) - limit.seconds + kept, limit.method)

    def features_left(
        self, cohort: Cohort, context: TrialContext, limit: TimeLimit, state: TrialState
    ) -> SecondsLeft | None:
        """The same for a trial that is solved, by the pace of its rows, which evaluating has too. None without a limit."""
        end, readout = self.limit_end(limit), state.adapter.readout
        if end is None or readout is None:
            return None
        count = validation_rows(cohort, context.costs(), self.settings)
        read = read_of(readout, context.validation[:count])
        # rows that are there already, and tokens that are counted alone, take no pass
        fresh = fresh_counts(context.features, context.backbone, read, readout.pooling)

        def left(rows: int, seconds_per_row: float) -> float:
            # a final trial is scored on all of them
            scored = scored_beside(rows / len(state.train), count) if cohort.purpose == "search" else count
            costs = replace(
                context.costs(), validation_rows=fresh[scored], seconds_per_validation_row=seconds_per_row,
                seconds_per_row=seconds_per_row,
            )  # fmt: skip
            kept = self._after_training(cohort, costs, limit) + WRITING * state.adapter.count()
            kept += context.row_costs.solution_ratio * solve_seconds(state.adapter, rows)
            return end.ledger.remaining(end.method) - end.reserve_seconds - kept

        return left

    def _after_training(self, cohort: Cohort, costs: EvaluationCost, limit: TimeLimit) -> float:
        # The reserve is what the user set, the other what was measured: the larger one holds.
        return max(limit.seconds * limit.reserve, evaluation_seconds(cohort, costs, self.settings))
