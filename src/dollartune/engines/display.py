"""What may be shown while cohorts run. The base shows nothing; the views for people are in study/progress.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.engines.base import Pruning
    from dollartune.train.checkpoints import Checkpoints
    from dollartune.train.progress import Progress, Validation
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


class TrialInTraining(Protocol):
    """What a view may know of a trial in training: a `TrialState`, or what another machine says of one."""

    @property
    def name(self) -> str: ...
    @property
    def done(self) -> bool: ...
    @property
    def epoch(self) -> float: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def progress(self) -> Progress: ...


class Display:
    """Shows nothing; the base of the views."""

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        """Around the whole run."""
        yield

    def note(self, text: str) -> None:
        """Something that was guessed, decided or left out."""

    def expect(self, total: int) -> None:
        """How many final trials there will be, where that is decided on the way."""

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        """A step was made by a cohort, here or on another machine."""

    def validated(self, trial: Trial, validation: Validation) -> None:
        """A trial has a validation loss."""

    def evaluating(self, trial: Trial) -> None:
        """A trial is being evaluated."""

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        """A trial has its record."""


class CohortWatcher:
    """Follows one cohort in training: shows it, ends trials that someone thinks hopeless, writes checkpoints when due.

    Args:
        prune: who decides whether a trial goes on; None: all do.
    """

    def __init__(
        self,
        display: Display,
        trials: Sequence[Trial],
        states: Sequence[TrialState],
        checkpoints: Checkpoints,
        prune: Pruning | None = None,
    ) -> None:
        self.display, self.states, self.checkpoints, self.prune = display, states, checkpoints, prune
        self.trials = {trial.identifier: trial for trial in trials}

    def stepped(self, trial: TrialState) -> None:
        self.display.training(list(self.trials.values()), self.states)
        if self.checkpoints.due():
            self.checkpoints.save(self.states)

    def validated(self, trial: TrialState) -> None:
        last = trial.progress.history[-1]
        # before the checkpoint below, which should say that the trial is done
        prune = self.prune if not trial.done else None
        if prune is not None and prune(self.trials[trial.name], last.step, last.validation_loss):
            trial.progress.stopped = "pruned"
        self.display.training(list(self.trials.values()), self.states)
        self.display.validated(self.trials[trial.name], last)
        if all(state.done for state in self.states) and self.checkpoints.worth_keeping():
            self.checkpoints.save(self.states)  # so that a kill while they are evaluated costs no training

    def ended(self, trial: TrialState) -> None:
        return None

    def interrupted(self) -> None:
        """The money is spent before the training is: what there is now is kept for the day when there is more."""
        if any(state.progress.step for state in self.states):
            self.checkpoints.save(self.states)
