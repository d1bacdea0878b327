"""When each stage of a cohort must have ended: moments at which so much of an account is left as belongs to others.

    account  |--- others' ---|---------------- this cohort's time limit ----------------|
                             |  load  |  train                | evaluate, export, write  |
                                                    training_end                 limit_end

What is without steps runs inside `until_spent`, which interrupts it only when the whole account is used up: what others left may
be used to end what has begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dollartune.budget.deadline import Deadline, closing_seconds, until
from dollartune.engines.base import Cohort, TimeLimit, evaluation_seconds
from dollartune.engines.measure_cost import WRITING

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.engines.trial_context import TrialContext
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
        # The reserve is what the user set, the other what was measured: the larger one holds.
        kept = max(limit.seconds * limit.reserve, evaluation_seconds(cohort, context.costs(), self.settings))
        # one more validation, which may just have begun, and the checkpoint that training ends with
        kept += context.seconds_per_validation + WRITING * sum(state.adapter.count() for state in states)
        # Of the account, `remaining - limit` belongs to other cohorts, and `kept` to what follows the training.
        return self.ledger.deadline(self.ledger.remaining(limit.method) - limit.seconds + kept, limit.method)
