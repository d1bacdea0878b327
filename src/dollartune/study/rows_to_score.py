"""How many rows a study with a budget scores: the same for all methods of a task.

A final trial's money pays for its tuning and for its scores. Where it would not pay for all test rows, all methods are
scored on the same first ones of them: fewer rows give wider intervals, and no rows give no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.engines.base import EVALUATION_MARGIN, LEAST_TEST_ROWS, Cohort, EvaluationCost, validation_rows
from dollartune.schedule.scheduler import StateFile

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

SCORING_SHARE = 0.3
"""Of a tuned trial's money, so much may go into its scores: rows are of use only to what has been tuned."""
SCORING_SHARE_UNTUNED = 0.8
"""Where nothing is tuned (solved examples in the prompt), scoring is all there is to pay for."""


@dataclass(frozen=True)
class RowCounts:
    """The first ones of a task's rows, which are scored."""

    test: int
    validation: int


@dataclass
class RowsToScoreState:
    """On disk, so that a study that goes on scores the rows that it began with."""

    by_task: dict[str, RowCounts] = field(default_factory=dict)
    """By the task's name: its place changes with the study file. Early folders have that."""


class RowsToScore:
    """Decides once for each task, when a first trial's cost of scoring is known.

    Validation rows are scored like test rows; where texts are written for each of them they cost as much, so that no more of
    them are scored than of the test rows.

    Args:
        trials: all final trials that are compared.
    """

    def __init__(self, settings: StudySettings, store: Store, ledger: Ledger, trials: Sequence[Trial]) -> None:
        self.settings, self.ledger, self.trials = settings, ledger, trials
        # An anytime search scores its one adapter at the end, on what is left by then.
        self.decides = ledger.limited and (settings.search is None or settings.search.strategy != "anytime")
        self._file = StateFile(store, ledger, ["rows to score"], RowsToScoreState, lambda values: None)
        stored = self._file.read() or RowsToScoreState()
        # A task may be called by a number, which then is no place.
        names = {str(trial.task_index): trial.task for trial in trials} | {trial.task: trial.task for trial in trials}
        self._state = RowsToScoreState({names.get(task, task): rows for task, rows in stored.by_task.items()})
        self._notes: list[str] = []

    def of_cohort(self, cohort: Cohort, costs: EvaluationCost) -> Cohort:
        """The cohort with the numbers of rows on which it is scored."""
        if not self.decides or costs.seconds_per_row is None:
            return cohort
        had = RowCounts(costs.test_rows, validation_rows(cohort, costs, self.settings))
        rows = self._rows(cohort.trials[0], had, costs.seconds_per_row, costs.seconds_per_validation_row)
        return replace(
            cohort,
            test_rows=rows.test if rows.test < had.test else cohort.test_rows,
            validation_rows=rows.validation if rows.validation < had.validation else cohort.validation_rows,
        )

    def of_cost(self, trial: Trial, cost: TrialCost) -> TrialCost:
        """What a trial costs if no more rows are scored than are decided on."""
        if not self.decides:
            return cost
        had = RowCounts(cost.test_rows, cost.validation_rows)
        each = cost.try_seconds / max(1, had.validation)
        rows = self._rows(trial, had, cost.seconds_per_test_row, each)
        return cost.with_rows(rows.test, rows.validation / max(1, had.validation) if had.validation else 1.0)

    def new_notes(self) -> list[str]:
        """What was decided since the last call, in sentences."""
        notes, self._notes = self._notes, []
        return notes

    def _rows(self, trial: Trial, had: RowCounts, test_seconds: float, validation_seconds: float) -> RowCounts:
        """Those of what there is that are scored.

        Args:
            test_seconds: of scoring a test row.
            validation_seconds: of scoring a validation row.
        """
        # By a measurement alone: what is decided here holds for the whole study.
        if trial.task not in self._state.by_task and test_seconds > 0:
            share = SCORING_SHARE if trial.trains else SCORING_SHARE_UNTUNED
            paid = share * self._seconds_each(trial) / EVALUATION_MARGIN
            rows = rows_paid_for(paid, had, test_seconds, validation_seconds)
            self._state.by_task[trial.task] = rows
            self._file.write(self._state)
            if rows.test < had.test:
                beside = f" and {rows.validation:,} of {had.validation:,} validation rows"
                self._notes.append(
                    f"each method is scored on the first {rows.test:,} of {had.test:,} test rows"
                    f"{beside if rows.validation < had.validation else ''}: with this budget all of them would take more than "
                    f"{numbers.percent(share)} of what a method has."
                )
        rows = self._state.by_task.get(trial.task, had)
        return RowCounts(min(rows.test, had.test), min(rows.validation, had.validation))

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
        # Of the whole account, what is spent included: a task's share is the same whenever its turn comes.
        total = self.ledger.remaining(account) + self.ledger.spent_seconds(account)
        return total / max(1, len(paid)) if total < math.inf else math.inf


def rows_paid_for(seconds: float, had: RowCounts, test_seconds: float, validation_seconds: float) -> RowCounts:
    """As many rows as so many seconds pay for, of both equally many where they do not pay for all validation rows.

    Never fewer than a score needs (`LEAST_TEST_ROWS`), where there are so many.

    Args:
        had: what there is.
        test_seconds: of scoring a test row.
        validation_seconds: of scoring a validation row.
    """
    if had.test * test_seconds + had.validation * validation_seconds <= max(0.0, seconds):
        return had
    most = seconds / (test_seconds + validation_seconds)
    if most > had.validation:
        most = (seconds - had.validation * validation_seconds) / test_seconds
    rows = max(LEAST_TEST_ROWS, int(most))
    return RowCounts(min(rows, had.test), min(rows, had.validation))
