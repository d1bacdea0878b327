"""Writing the report costs time as well: it is booked after it was written, so it stands in the ledger and not in itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dollartune.budget.ledger import Ledger
from dollartune.budget.study_budget import machine_price

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.store import Store


@contextmanager
def booked_report(settings: StudySettings, store: Store) -> Iterator[None]:
    """Books the time of the block as `report`, shared by all methods, also where writing fails."""
    began = time.monotonic()
    try:
        yield
    finally:
        # Nothing runs in this ledger, so that there is nothing to save on the way.
        with Ledger(price_per_hour=machine_price(settings), path=store.ledger, heartbeat_seconds=0) as ledger:
            ledger.add("report", time.monotonic() - began)
