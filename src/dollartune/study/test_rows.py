"""How many test rows a study with a budget scores: one number for all methods of a task.

A final trial's money pays for its tuning and for its scores. Where it would not pay for all test rows, all methods are
scored on the same first ones of them: fewer rows give wider intervals, and no rows give no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dollartune.engines.base import EVALUATION_MARGIN, LEAST_TEST_ROWS, Cohort, EvaluationCost
from dollartune.schedule.scheduler import StateFile

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

SCORING_SHARE = 0.3
"""Of a tuned trial's money, so much may go into its test score: rows are of use only to what has been tuned."""
SCORING_SHARE_UNTUNED = 0.8
"""Where nothing is tuned (solved examples in the prompt), scoring is all there is to pay for, beside validation rows."""


@dataclass
class RowsToScoreState:
    """On disk, so that a study that goes on scores the rows that it began with."""

    by_task: dict[int, int] = field(default_factory=dict)
    """Test rows that are scored, by the task's index."""


class RowsToScore:
    """Decides once for each task, when a first trial's cost of scoring is known.

    Args:
        trials: all final trials that are compared.
    """

    def __init__(self, settings: StudySettings, store: Store, ledger: Ledger, trials: Sequence[Trial]) -> None:
        self.settings, self.ledger, self.trials = settings, ledger, trials
        # An anytime search scores its one adapter at the end, on what is left by then.
        self.decides = ledger.limited and (settings.search is None or settings.search.strategy != "anytime")
        self._file = StateFile(store, ledger, ["test rows"], RowsToScoreState, lambda values: None)
        self._state = self._file.read() or RowsToScoreState()
        self._notes: list[str] = []

    def of_cohort(self, cohort: Cohort, costs: EvaluationCost) -> Cohort:
        """The cohort with the number of test rows on which it is scored, if it is."""
        if not self.decides or cohort.purpose != "final" or costs.seconds_per_row is None:
            return cohort
        rows = self._rows(cohort.trials[0], len(costs.splits.test), costs.seconds_per_row)
        return cohort if rows is None else replace(cohort, test_rows=rows)

    def of_cost(self, trial: Trial, cost: TrialCost) -> TrialCost:
        """What a trial costs if no more test rows are scored than are decided on."""
        if not self.decides:
            return cost
        rows = self._rows(trial, cost.test_rows, cost.seconds_per_test_row)
        return cost if rows is None else cost.with_test_rows(rows)

    def new_notes(self) -> list[str]:
        """What was decided since the last call, in sentences."""
        notes, self._notes = self._notes, []
        return notes

    def _rows(self, trial: Trial, all_rows: int, seconds_per_row: float) -> int | None:
        """None where all are scored."""
        if trial.task_index not in self._state.by_task and seconds_per_row > 0:
            share = SCORING_SHARE if trial.trains else SCORING_SHARE_UNTUNED
            paid = share * self._seconds_each(trial) / (EVALUATION_MARGIN * seconds_per_row)
            rows = all_rows if paid >= all_rows else max(min(LEAST_TEST_ROWS, all_rows), int(paid))
            self._state.by_task[trial.task_index] = rows
            self._file.write(self._state)
            if rows < all_rows:
                self._notes.append(
                    f"each method is scored on the first {rows:,} of {all_rows:,} test rows: with this budget all of them would "
                    f"take more than {share:.0%} of what a method has."
                )
        rows = self._state.by_task.get(trial.task_index, all_rows)
        return rows if rows < all_rows else None

    def _seconds_each(self, trial: Trial) -> float:
        """What a final trial like this one has for itself."""
        budget = self.settings.budget
        if budget is not None and budget.per == "trial":
            return budget.limit(1).in_seconds(self.ledger.price_per_hour)
        per_method = self.ledger.per == "method"
        account = trial.variant.group if per_method else None
        paid = [one for one in self.trials if not per_method or one.variant.group == account]
        if self.settings.search is not None:
            # How many seeds the money pays for is decided by the search, which leaves out some before it trains less.
            paid = list({(one.label, one.backbone_index, one.task_index, one.scale): one for one in paid}.values())
        total = self.ledger.remaining(account) + self.ledger.spent_seconds(account)
        return total / max(1, len(paid)) if total < math.inf else math.inf
