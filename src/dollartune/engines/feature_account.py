"""What a trial would have to pay for features of the frozen backbone, and for what its leading frozen layers give, that were
there already.

    features, states read ──> seconds that they took when computed ──> booked for this trial (in its cost)
                                                                  └──> booked for another trial, or by an earlier study

Both stores know for each row what it took and under which booking; the ledger knows whose booking that is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dollartune.train.frozen_prefix_cache import FrozenPrefixCache

if TYPE_CHECKING:
    from dollartune.engines.base import Driver
    from dollartune.engines.trial_context import TrialContext
    from dollartune.train.features import KnownRow
    from dollartune.train.frozen_prefix_cache import KnownStates
    from dollartune.trials.record import Cost
    from dollartune.trials.trial import Trial


class FeatureAccount:
    """Of the trials of one cohort at a time."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._rows: dict[str, set[KnownRow | KnownStates]] = defaultdict(set)
        self._before: dict[str, Cost] = {}

    def begin(self, before: Iterable[tuple[Trial, Cost]] = ()) -> None:
        """Forgets the cohort before.

        Args:
            before: what trials that were tuned then and are evaluated now have read by then.
        """
        self._rows.clear()
        self._before = {trial.identifier: cost for trial, cost in before}

    @contextmanager
    def reading(self, context: TrialContext, trials: Iterable[Trial]) -> Iterator[None]:
        """What is read inside: features by each of these trials, what frozen layers give by the one whose adapter passes."""
        with ExitStack() as stores:
            rows = stores.enter_context(context.features.noting(self.driver.paying))
            cache = context.attached.state.frozen_prefix
            states = (
                stores.enter_context(cache.noting(self.driver.paying)) if isinstance(cache, FrozenPrefixCache) else {}
            )
            try:
                yield
            finally:
                for trial in trials:
                    self._rows[trial.identifier] |= {*rows, *states.get(trial.identifier, ())}

    def seconds(self, trial: Trial) -> tuple[float, float]:
        """What the features and states that it has read took, and how much of that was booked for it."""
        by_booking: dict[str, float] = defaultdict(float)
        for row in self._rows.get(trial.identifier, ()):
            by_booking[row.booking] += row.seconds
        booked = 0.0
        if by_booking:  # many methods read none, and a ledger is long
            shares = self.driver.ledger.shares_of(trial.identifier)
            booked = sum(took * shares.get(booking, 0.0) for booking, took in by_booking.items())
        before = self._before.get(trial.identifier)
        if before is None:
            return sum(by_booking.values()), booked
        return before.features_seconds + sum(by_booking.values()), before.features_booked_seconds + booked
