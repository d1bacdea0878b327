"""Starting up costs money too: importing libraries, reading data, planning. Imports nothing heavy itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.budget.deadline import BudgetSpent, alarm, closing_seconds
from dollartune.budget.ledger import Ledger
from dollartune.budget.prices import find_price
from dollartune.errors import UserError
from dollartune.trials.store import Store

if TYPE_CHECKING:
    from dollartune.config import StudySettings


def seconds_since_start() -> float:
    """How long this process has been running, by the clock that nobody sets, and that stands still while a laptop sleeps."""
    return time.monotonic() - _began()


@cache
def _began() -> float:
    import psutil

    # From the operating system: imports took seconds before any clock of ours began. It says so by the wall clock, which may be
    # set at any moment, and is therefore asked once, as soon as anybody wants to know.
    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


REPORT_PER_START = 1.8
"""Writing a report takes about so many times as long as the process took until the study began: both import libraries first of
all, so that a slow or busy machine slows both."""
REPORT_SHARE = 0.05
"""Of the budget of a `tune`: a report that would take more than this is left out; it can be written afterwards."""
RUN_REPORT_SHARE = 0.2
"""Of that of a `run`, which is there to compare: the report is what it comes to."""


def report_seconds(limit_seconds: float, most_share: float = REPORT_SHARE) -> float | None:
    """What a report will take here, judged by how long starting took; None where it is too much of the budget.

    Args:
        limit_seconds: the budget; infinity without one.
    """
    seconds = REPORT_PER_START * seconds_since_start()
    return seconds if seconds <= most_share * limit_seconds else None


def whole_limit(settings: StudySettings) -> float:
    """Seconds that a study may spend in all, as far as that is known before its trials are; infinity without a limit."""
    budget = settings.budget
    if budget is None or budget.per == "trial":  # how many trials is not known yet
        return math.inf
    accounts = len(settings.methods) if budget.per == "method" else 1
    return budget.limit(trials=1).in_seconds(find_price(budget.price, budget.machine)) * accounts


@contextmanager
def starting(settings: StudySettings, root: Path, seconds_before: float, fresh: bool = False) -> Iterator[None]:
    """Ends the start of a new study if its money is spent before it has begun.

    Args:
        root: the study's folder.
        seconds_before: what has been spent until now.
        fresh: earlier results will be deleted, so that they do not count.

    Raises:
        UserError: the money is spent; what it was spent on is booked.
    """
    began = time.monotonic() - seconds_before
    # A study with records has paid for a start before; its ledger decides, not this guard.
    begun = not fresh and any(Store(root).records())  # its ledger knows what is left
    limit = math.inf if begun else whole_limit(settings)
    try:
        with alarm(
            lambda: limit - closing_seconds() - (time.monotonic() - began),
            "the budget was used up before the study began",
        ):
            yield
    except BudgetSpent:
        with Ledger(path=Store(root).ledger) as ledger:
            # Booked although nothing came of it: the same command again must not get this time for nothing.
            ledger.add("load", time.monotonic() - began)
        raise UserError(
            f"the budget of {limit:.1f} s was spent before the study had begun: starting up and reading the data takes "
            "longer than that on this machine. Nothing was tuned.",
            hint="Raise the budget.",
        ) from None
