"""The end of a cell's money: the best trained run once more with the validation rows among its own, averaged with the first.

    best run, rows without validation ─┐
                                       ├─ mean of their weights ─> handed over
    same start, all rows ──────────────┘

Validation rows have nothing left to choose then, and the average costs nothing when it is served (Wortsman et al., "Model
soups", 2022). It is one more run of a length that is known, so that its seconds are set aside while other things are tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune.planner.trial_cost import LEAST_STEPS
from dollartune.schedule.anytime_state import AnytimeState, Run

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.schedule.run_cost import RunCost
    from dollartune.schedule.run_history import RunHistory
    from dollartune.trials.store import Store

AVERAGE_GAIN = 0.005
"""By so much an average with a run on more rows is better than the first run's validation score: 0.002 to 0.007 were seen."""
WORTH_AVERAGING = 0.4
"""Of the best run's passes: with fewer of them over all rows a second run ends too far from the first one. On SST-2 two runs of
two epochs had 0.822 and 0.804 right, and their average 0.825; two of four epochs 0.826 and 0.815, and 0.833 (MiniLM)."""


class Averaging:
    """Whether and with what the best run is averaged. Reads the scheduler's state and changes nothing."""

    def __init__(
        self, settings: StudySettings, store: Store, state: AnytimeState, history: RunHistory, cost: RunCost
    ) -> None:
        self.settings, self.store, self.state, self.history, self.cost = settings, store, state, history, cost

    @property
    def wanted(self) -> bool:
        """Whether the study lets the validation rows be trained on."""
        return self.settings.training.train_on_validation

    def run(self) -> Run | None:
        """The second run; None where there is nothing to average, or too little money for it.

        Solved methods take the validation rows in their own run (`train.solve.solve_on_all`).
        """
        best = self.first()
        if best is None:
            return None
        rows, steps = self.history.rows() + self._more_rows, self._affordable_steps(best)
        again = f"{self.history.label(best)} again on all {rows:,} rows, {steps} steps"
        why = f"{again}, to be averaged with the first: nothing else fits."
        name = self.history.name(best)
        return Run("average", best.setting, best.seed, steps, why, length="at_most", averaged_with=name)

    def first(self) -> Run | None:
        """The run whose average with another would be handed over; None where there is none, or too little money for it."""
        # once: one that failed would fail again
        if not self.wanted or any(run.averaged_with for run in self.state.runs):
            return None
        # A probe is not averaged: its solution is the only one, and takes the validation rows in its own run.
        trained, chosen = self.history.trained(), self.history.choice()
        if chosen is not None and chosen in trained and self._kept(chosen):
            best: Run | None = chosen
        else:
            best = self.history.best([run for run in trained if self._kept(run)])
        if best is None or self._affordable_steps(best) < max(LEAST_STEPS, WORTH_AVERAGING * self._steps(best)):
            return None
        highest = self.history.score(self.history.incumbent() or best) or 0.0
        return best if (self.history.score(best) or 0.0) >= highest - AVERAGE_GAIN else None

    def seconds(self) -> float:
        """What the second run takes, and nothing else may be tried with."""
        best = self.first()
        return 0.0 if best is None else self.cost.seconds_of(best.setting.method, self._steps(best))

    def _affordable_steps(self, best: Run) -> int:
        """Steps of the second run that the money pays for, and are useful."""
        return min(self._steps(best), self.cost.steps_in(best.setting.method, self.cost.training_seconds()))

    def _steps(self, best: Run) -> int:
        """As many passes over all rows as the best run has made over its own."""
        return round(self.history.outcome(best).steps * (1 + self._more_rows / max(1, self.history.rows())))

    @property
    def _more_rows(self) -> int:
        """Validation rows; a state of before holds those alone that runs were scored on."""
        return self.state.all_validation_rows or self.state.validation_rows

    def _kept(self, run: Run) -> bool:
        """Whether its adapter is there: of equally good runs the first one's is."""
        folder = self.store.folder(self.history.name(run)) / "adapter"
        return folder.is_dir() or self.settings.keep_adapters == "none"
