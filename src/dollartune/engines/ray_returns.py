"""What machines send back, put into the study's store: checkpoints, records with their adapters, and failures."""

from __future__ import annotations

from collections.abc import Mapping

from dollartune.engines.base import Cohort, Driver
from dollartune.engines.ray_attempts import Attempt, GiveUp
from dollartune.engines.ray_mailroom import Left, Saved
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import Cost
from dollartune.trials.trial import Trial


class Returns:
    """Keeps what attempts have found. The seconds that went into it are final from then on.

    Args:
        driver: with whom records are left.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def keep_checkpoint(self, attempt: Attempt, message: Saved) -> None:
        """A checkpoint in the place of the one before; without files, it is not needed any more."""
        assert attempt.account is not None
        if message.files:
            self._checkpoints(message.cohort).put(message.files)
            attempt.saved = True
            attempt.account.keep()
        else:
            self._checkpoints(message.cohort).clear()

    def keep_record(self, attempt: Attempt, message: Left) -> None:
        """A trial's record, after its adapter."""
        assert attempt.account is not None
        trial = attempt.trial(message.trial)
        folder = self.driver.folder(message.trial) / "adapter"
        if message.adapter:
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in message.adapter.items():
            (folder / name).write_bytes(content)
        attempt.account.keep()
        self.driver.leave(trial, message.record, message.predictions)

    def fail(self, attempt: Attempt, trial: Trial, why: GiveUp) -> None:
        """The record of a trial that was given up."""
        seconds, dollars = self.booked(trial)
        price = attempt.account.price_per_hour if attempt.account is not None else 0.0
        cost = Cost(seconds=seconds, dollars=dollars, price_per_hour=price)
        self.driver.leave(trial, failed_record(trial, why.kind, why.message, cost))

    def checkpoint(self, attempt: Attempt) -> Mapping[str, bytes]:
        """The newest checkpoint of a cohort: the store's, or the part of a cohort's that it was given."""
        found = self._checkpoints(attempt.cohort.name).files()
        fits = all(f"{trial.identifier}.json" in found for trial in attempt.cohort.trials)
        return found if fits else attempt.checkpoint

    def forget(self, cohort: Cohort) -> None:
        """A cohort needs its checkpoint no more."""
        self._checkpoints(cohort.name).clear()

    def booked(self, trial: Trial) -> tuple[float, float]:
        """Seconds and dollars that are booked for a trial, on whatever machine."""
        pieces = [piece for piece in self.driver.ledger.pieces()[0] if piece.trial == trial.identifier]
        return sum(piece.seconds for piece in pieces), sum(piece.dollars for piece in pieces)

    def _checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.driver.folder(cohort) / "checkpoint")
