"""A study without a search: every trial that it lists, each with an equal share of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
from dollartune.schedule.cells import in_cohorts
from dollartune.schedule.scheduler import Scheduler, seconds_left, time_limit

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


class FixedScheduler(Scheduler):
    """Runs all trials, in cohorts that are the same on every run, so that a checkpoint finds its cohort again. It has no
    state on disk: what is left to do follows from the records.

    Args:
        trials: all trials of the study, those that are done included.
        together: most trials of a cohort.
    """

    def __init__(self, settings: StudySettings, ledger: Ledger, trials: Sequence[Trial], together: int = 1) -> None:
        super().__init__()
        self.settings, self.ledger, self.trials, self.together = settings, ledger, trials, together
        budget = settings.budget
        self.limited = budget is not None and budget.limited
        self.reserve = budget.reserve if budget is not None else 0.0
        per_trial = budget is not None and budget.per == "trial"
        self.each = budget.limit(1).in_seconds(ledger.price_per_hour) if budget is not None and per_trial else None
        self._waiting = {trial.identifier for trial in trials}

    @property
    def finals(self) -> list[Trial]:
        return list(self.trials)

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        # From all trials, not from those that wait: else a resumed study would form other cohorts, whose checkpoints
        # are not there.
        cohorts = in_cohorts(self.trials, self.together, "final")
        return [cohort for cohort in cohorts if any(trial.identifier in self._waiting for trial in cohort.trials)]

    def done(self, trial: Trial, record: TrialRecord) -> None:
        self._waiting.discard(trial.identifier)

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        if not self.limited:
            return TimeLimit(float("inf"))
        seconds, method = self.seconds_for(cohort.trials)
        seconds = min(seconds, seconds_left(self.ledger, method))
        return time_limit(seconds, cohort, costs, self.settings, method, self.reserve)

    def seconds_for(self, trials: Sequence[Trial]) -> tuple[float, str | None]:
        """(seconds for these trials, the account that pays): every waiting trial of an account gets the same.

        An interrupted trial has used some of its seconds already: they count as its own, not as everybody's.
        """
        methods = {trial.variant.group for trial in trials}
        # a cohort of several methods is bound by the one that has least
        method = min(methods, key=self.ledger.remaining) if self.ledger.per == "method" else None
        waiting = [
            t for t in self.trials if t.identifier in self._waiting and (not method or t.variant.group in methods)
        ]
        # One look at the ledger for both: a running booking grows between two.
        left, by_trial = self.ledger.remaining(method), self.ledger.totals().by_trial
        used = sum(by_trial.get(t.identifier, 0.0) for t in trials if method in (None, t.variant.group))
        # What waiting trials have used is put back before dividing and taken off again, so that only they pay for it.
        begun = sum(by_trial.get(t.identifier, 0.0) for t in waiting)
        share = (left + begun) * len(trials) / max(1, len(waiting)) - used
        # Where each has its own sum, all bear what is shared (loading, the report); else the last ones would bear all of it.
        return share if self.each is None else min(share, self.each * len(trials) - used), method
