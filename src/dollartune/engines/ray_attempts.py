"""Attempts at a cohort on a Ray cluster, and what follows when one ends without a result."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.display import Display
from dollartune.engines.ray_cluster import Node
from dollartune.engines.ray_mailroom import Works
from dollartune.engines.remote_account import RemoteAccount
from dollartune.errors import UserError
from dollartune.train.settings import TrainingSettings
from dollartune.trials.build_record import error_class
from dollartune.trials.trial import Trial

LOSSES = 3
"""Machines that a cohort may lose in a row, without a checkpoint between them, before it counts as failed."""
CRASHES = 2
"""Times that a trial may end the process that runs it before it counts as failed."""


@dataclass(eq=False)
class Attempt:
    """One attempt at a cohort, as the driver sees it."""

    cohort: Cohort
    training: TrainingSettings
    measures: bool = False
    """Only measure what the cohort's first trial costs."""
    checkpoint: Mapping[str, bytes] = field(default_factory=dict)
    """To go on from, where the store has none for this cohort."""
    losses: int = 0
    """Machines lost in a row before this attempt."""
    crashes: int = 0
    """Processes ended before this attempt."""
    identifier: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    task: Any = None
    """Ray's reference to its result."""
    node: Node | None = None
    process: int = 0
    """On that machine."""
    account: RemoteAccount | None = None
    """Open from the moment at which it begins on a machine."""
    began: float = 0.0
    promised: float | None = None
    """Seconds that it may spend in all; None without a limit, and before it has asked."""
    method: str | None = None
    """Whose money that is; None is the study's."""
    saved: bool = False
    """Whether it has left a checkpoint."""
    _shown: dict[str, int] = field(default_factory=dict)

    def trial(self, identifier: str) -> Trial:
        """One of its trials."""
        return next(trial for trial in self.cohort.trials if trial.identifier == identifier)

    def begin(self, node: Node, process: int, account: RemoteAccount) -> None:
        """It runs on a machine, since as long ago as the account says."""
        self.node, self.process, self.account = node, process, account
        self.began = time.monotonic() - account.seconds()

    def promise(self, time_limit: TimeLimit, rate: float) -> TimeLimit:
        """Notes a time_limit; returns it in seconds of this machine.

        Args:
            rate: those, for one second at the ledger's price.
        """
        assert self.account is not None
        seconds = time_limit.seconds * rate
        self.method = time_limit.method
        self.promised = None if math.isinf(seconds) else self.account.seconds(time_limit.method) + seconds
        return replace(time_limit, seconds=seconds)

    def show(self, display: Display, message: Works) -> None:
        """Tells the display how far it is."""
        if message.states:
            display.training(self.cohort.trials, message.states)
        for state in message.states:
            for validation in state.progress.history[self._shown.get(state.name, 0) :]:
                display.validated(self.trial(state.name), validation)
            self._shown[state.name] = len(state.progress.history)
        if message.evaluating is not None:
            display.evaluating(self.trial(message.evaluating))


@dataclass(frozen=True)
class Retry:
    """What is to be tried instead."""

    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class GiveUp:
    """The trials of the cohort that have no record have failed."""

    kind: str
    """The class of the failure."""
    message: str


def again(
    attempt: Attempt, error: Exception, exceptions: Any, machine_lives: bool, files: Mapping[str, bytes]
) -> Retry | GiveUp:
    """What follows when a task ended with an error.

    Args:
        exceptions: Ray's module of them.
        machine_lives: whether the machine that it ran on is still in the cluster.
        files: of the cohort's newest checkpoint.

    Raises:
        UserError: the machines cannot run this study at all.
    """
    if isinstance(error, exceptions.RayTaskError):
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ImportError) or "failed to import" in str(cause):
            raise UserError(
                f"a machine of the cluster cannot import dollartune: {str(cause).strip().splitlines()[-1]}",
                hint="Install the same version everywhere: pip install 'dollartune[ray]'",
            ) from error
        return GiveUp(error_class(cause), f"{type(cause).__name__}: {cause}")
    training = attempt.training
    if isinstance(error, exceptions.OutOfMemoryError):
        micro = training.micro_batch_size or training.batch_size
        if micro > 1 and not attempt.measures:
            training = training.model_copy(update={"micro_batch_size": (micro + 1) // 2})
            return Retry((Attempt(attempt.cohort, training, checkpoint=attempt.checkpoint, losses=attempt.losses),))
        return _alone(attempt, files) or GiveUp("out_of_memory", "the machine ran out of memory and ended the process.")
    if not machine_lives or isinstance(error, exceptions.NodeDiedError):
        losses = 1 if attempt.saved else attempt.losses + 1
        if losses > LOSSES:
            return GiveUp(
                "machine_lost", f"{losses} machines were lost one after the other while they ran this cohort."
            )
        same = Attempt(
            attempt.cohort, training, attempt.measures, attempt.checkpoint, losses=losses, crashes=attempt.crashes
        )
        return Retry((same,))
    if attempt.crashes + 1 < CRASHES:  # once more as it was: its machine may be dying, which shows later
        same = Attempt(
            attempt.cohort, training, attempt.measures, attempt.checkpoint, attempt.losses, attempt.crashes + 1
        )
        return Retry((same,))
    first = str(error).strip().splitlines()[0]
    return _alone(attempt, files) or GiveUp("crash", f"the process that ran it ended {CRASHES} times: {first}")


def _alone(attempt: Attempt, files: Mapping[str, bytes]) -> Retry | None:
    """Each trial of a cohort alone, so that the one that breaks takes no other with it; None where it is alone already."""
    if len(attempt.cohort.trials) == 1:
        return None
    alone = []
    for trial in attempt.cohort.trials:
        own = {name: content for name, content in files.items() if name.startswith(f"{trial.identifier}.")}
        alone.append(Attempt(Cohort((trial,), attempt.cohort.purpose), attempt.training, checkpoint=own))
    return Retry(tuple(alone))
