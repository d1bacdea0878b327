"""What may be shown while cohorts run. The base shows nothing; the views for people are in study/progress.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.train.checkpoints import Checkpoints
    from dollartune.train.progress import Progress, Validation
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


@dataclass(frozen=True)
class TrialInTraining:
    """What a view may know of a trial in training, here or on another machine."""

    name: str
    done: bool
    epoch: float
    total_steps: int
    progress: Progress

    @classmethod
    def of(cls, state: TrialState) -> TrialInTraining:
        return cls(state.name, state.done, state.epoch, state.total_steps, state.progress)


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
        prune: who decides whether a trial ends now (`engines.base.Driver`).
    """

    def __init__(
        self,
        display: Display,
        trials: Sequence[Trial],
        states: Sequence[TrialState],
        checkpoints: Checkpoints,
        prune: Callable[[Trial, int, float], bool],
    ) -> None:
        self.display, self.states, self.checkpoints, self.prune = display, states, checkpoints, prune
        self.trials = {trial.identifier: trial for trial in trials}
        self._kept = False
        """Whether what there was when the money came to its end is kept: more money goes on from there, not from the decay."""

    def stepped(self, trial: TrialState) -> None:
        self._show()
        if not self._kept and self.checkpoints.due():
            self._save()

    def validated(self, trial: TrialState) -> None:
        last = trial.progress.history[-1]
        # before the checkpoint below, which should say that the trial is done
        if not trial.done and self.prune(self.trials[trial.name], last.step, last.validation_loss):
            trial.progress.stopped = "pruned"
        self._show()
        self.display.validated(self.trials[trial.name], last)
        if not self._kept and all(state.done for state in self.states) and self.checkpoints.worth_keeping():
            self._save()  # so that a kill while they are evaluated costs no training

    def ended(self, trial: TrialState) -> None:
        return None

    def interrupted(self) -> None:
        """The money ends before the training does: what there is now is kept for the day when there is more."""
        if not self._kept and any(state.progress.step for state in self.states):
            self._save()
            self._kept = True

    def _save(self) -> None:
        from dollartune.train.checkpoints import CHECKPOINT_ERRORS  # here: a display alone needs no PyTorch

        try:
            self.checkpoints.save(self.states)
        except CHECKPOINT_ERRORS as error:
            # Without it a kill would cost what was trained since the last one; ending the training costs that now.
            labels = ", ".join(trial.label for trial in self.trials.values())
            self.display.note(f"{labels}: no checkpoint could be written ({error}); training goes on without.")

    def _show(self) -> None:
        self.display.training(list(self.trials.values()), [TrialInTraining.of(state) for state in self.states])
