"""Attempts at a cohort on a Ray cluster, and what follows when one ends without a result."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError
from dollartune.train.out_of_memory import halved_after_out_of_memory
from dollartune.trials.build_record import error_class

if TYPE_CHECKING:
    from dollartune.engines.base import Cohort
    from dollartune.engines.display import Display
    from dollartune.engines.payload import Report
    from dollartune.train.settings import TrainingSettings
    from dollartune.trials.trial import Trial

LOSSES = 3
"""Machines that a cohort may lose in a row, without a checkpoint between them, before it counts as failed: spot machines
come and go, but a cohort that takes each machine down must end somewhere."""
CRASHES = 2
"""Times that a trial may end the process that runs it before it counts as failed: once may be the machine's fault."""


def _identifier() -> str:
    return uuid.uuid4().hex[:12]


@dataclass(eq=False)
class Attempt:
    """One attempt at a cohort."""

    cohort: Cohort
    training: TrainingSettings
    measures: bool = False
    """Only measure what the cohort's first trial costs."""
    losses: int = 0
    """Machines lost in a row before this attempt."""
    crashes: int = 0
    """Processes ended before this attempt."""
    identifier: str = field(default_factory=_identifier)
    loading: bool = False
    """Its backbone and data are being loaded: it has no time limit yet."""
    saved: bool = False
    """Whether it has left a checkpoint."""
    _shown: dict[str, int] = field(default_factory=dict)

    def trial(self, identifier: str) -> Trial:
        """One of its trials."""
        return next(trial for trial in self.cohort.trials if trial.identifier == identifier)

    def again(self, **changes: Any) -> Attempt:
        """The next attempt at the same cohort: a new one, so that what this one still says does not count."""
        return replace(self, identifier=_identifier(), loading=False, saved=False, _shown={}, **changes)

    def show(self, display: Display, report: Report) -> None:
        """Tells the display how far it is."""
        if report.states:
            display.training(self.cohort.trials, report.states)
        for state in report.states:
            for validation in state.progress.history[self._shown.get(state.name, 0) :]:
                display.validated(self.trial(state.name), validation)
            self._shown[state.name] = len(state.progress.history)
        if report.evaluating is not None:
            display.evaluating(self.trial(report.evaluating))


@dataclass(frozen=True)
class GiveUp:
    """The trials of the cohort that have no record have failed."""

    kind: str
    """The class of the failure."""
    message: str


def check_import(error: Exception) -> None:
    """Ends the study where a machine does not have what it needs.

    Raises:
        UserError: the error says so.
    """
    text = str(error)
    if any(sign in text for sign in ("failed to import", "ModuleNotFoundError", "ImportError")):
        raise UserError(
            f"a machine of the cluster cannot import dollartune: {text.strip().splitlines()[-1]}",
            hint="Install the same version everywhere: pip install 'dollartune[ray]'",
        ) from error


def next_attempts(
    attempt: Attempt, error: Exception, exceptions: Any, machine_lives: bool
) -> Sequence[Attempt] | GiveUp:
    """What follows when a worker's call ended with an error.

    Args:
        exceptions: Ray's module of them.
        machine_lives: whether the machine that it ran on is still in the cluster.

    Raises:
        UserError: the machines cannot run this study at all.
    """
    check_import(error)
    if isinstance(error, exceptions.RayTaskError):
        cause = getattr(error, "cause", None) or error
        return GiveUp(error_class(cause), f"{type(cause).__name__}: {cause}")
    if isinstance(error, exceptions.OutOfMemoryError):  # the process was ended from outside, before it could notice
        training = attempt.training
        smaller = halved_after_out_of_memory(
            MemoryError(), training.micro_batch_size or training.batch_size, "rows per pass on the cluster"
        )
        if smaller is not None and not attempt.measures:
            return [attempt.again(training=training.model_copy(update={"micro_batch_size": smaller}))]
        return _alone(attempt) or GiveUp("out_of_memory", "the machine ran out of memory and ended the process.")
    if not machine_lives or isinstance(error, exceptions.NodeDiedError):
        losses = 1 if attempt.saved else attempt.losses + 1
        if losses > LOSSES:
            return GiveUp(
                "machine_lost", f"{losses} machines were lost one after the other while they ran this cohort."
            )
        return [attempt.again(losses=losses)]
    if attempt.crashes + 1 < CRASHES:  # once more as it was: its machine may be dying, which shows later
        return [attempt.again(crashes=attempt.crashes + 1)]
    first = str(error).strip().splitlines()[0]
    return _alone(attempt) or GiveUp("crash", f"the process that ran it ended {CRASHES} times: {first}")


def _alone(attempt: Attempt) -> Sequence[Attempt]:
    """Each trial of a cohort alone, so that the one that breaks takes no other with it; none where it is alone already."""
    trials = attempt.cohort.trials
    if len(trials) == 1:
        return []
    return [Attempt(replace(attempt.cohort, trials=(trial,)), attempt.training, attempt.measures) for trial in trials]
