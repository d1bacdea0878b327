"""Ends trials that someone thinks hopeless, while they train."""

from __future__ import annotations

from dollartune.engines.base import Pruning
from dollartune.train.loop import Watcher
from dollartune.train.trial import TrialState
from dollartune.trials.trial import Trial


class PruningWatch:
    """Passes everything on to another watcher, and ends trials that someone thinks hopeless.

    Args:
        inner: the display's watcher.
        trials: by identifier.
        prune: who decides.
    """

    def __init__(self, inner: Watcher, trials: dict[str, Trial], prune: Pruning) -> None:
        self.inner, self.trials, self.prune = inner, trials, prune

    def stepped(self, trial: TrialState) -> None:
        self.inner.stepped(trial)

    def validated(self, trial: TrialState) -> None:
        last = trial.progress.history[-1]
        if not trial.done and self.prune(self.trials[trial.name], last.step, last.validation_loss):
            trial.progress.stopped = "pruned"
        self.inner.validated(trial)

    def ended(self, trial: TrialState) -> None:
        self.inner.ended(trial)

    def interrupted(self) -> None:
        self.inner.interrupted()
