"""How much of the budget the next trials may use: equal shares, with what their evaluation needs kept back."""

from __future__ import annotations

from collections.abc import Sequence

from dollartune.budget.deadline_signal import closing_seconds
from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, Timed, TimeLimit, evaluation_seconds
from dollartune.trials.store import Store
from dollartune.trials.trial import Trial


class Allowance:
    """Divides what is left of a study's budget.

    Args:
        trials: all trials of the study, those that are done included.
    """

    def __init__(self, settings: StudySettings, ledger: Ledger, store: Store, trials: Sequence[Trial]) -> None:
        self.settings, self.ledger, self.store, self.all_trials = settings, ledger, store, trials
        budget = settings.budget
        self.limited = budget is not None and budget.limited
        self.reserve = budget.reserve if budget is not None else 0.0
        each = budget is not None and budget.per == "trial"
        self.each = budget.limit(trials=1).in_seconds(ledger.price_per_hour) if budget is not None and each else None

    def share(self, trials: Sequence[Trial]) -> tuple[float, float, str | None]:
        """(seconds left, these trials' share of them, whose): every waiting trial of its methods gets the same."""
        per_method = self.ledger.per == "method"
        groups = {trial.variant.group for trial in trials}
        group = min(groups, key=self.ledger.remaining) if per_method else None
        waiting = [
            t
            for t in self.all_trials
            if not self.store.has(t.identifier) and (group is None or t.variant.group in groups)
        ]
        left = self.ledger.remaining(group)
        spent = self.ledger.totals().by_trial  # an interrupted trial has used some of its share already
        own = sum(spent.get(t.identifier, 0.0) for t in trials if group in (None, t.variant.group))
        if self.each is not None:
            return left, min(left, self.each * len(trials) - own), group
        return left, (left + own) * len(trials) / max(1, len(waiting)) - own, group

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        """What a cohort may spend.

        Raises:
            BudgetSpent: it could not even be evaluated with what is left; with what is left and what it would take.
        """
        if not self.limited:
            return TimeLimit(float("inf"))
        left, share, group = self.share(cohort.trials)
        share = min(share, left - closing_seconds())
        needed = evaluation_seconds(cohort, context, self.settings)
        if needed > share:
            raise BudgetSpent(
                f"{share:.1f} s are left for this trial, and evaluating it alone takes about {needed:.1f} s. Give the "
                "budget more, or evaluate fewer rows (evaluation: {rows: ...})."
            )
        return TimeLimit(share, self.reserve, group)
