"""What cohorts that run at the same time may still spend, so that together they keep to the budget.

Each cohort was granted its share when it began. While it runs, other things spend too: other machines load backbones,
idle ones wait at their price. So the grants are looked at again all the time: where what is left of an account is less
than all cohorts together were promised,

    needed = sum_i promised_i x price_i  +  idle price x time until the last of them ends
    factor = min(1, left / needed)

every one of them is cut by the same factor. It is pure arithmetic; the driver tells the machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dollartune.budget.ledger import Ledger


@dataclass(frozen=True)
class Promise:
    """What one running cohort may spend."""

    method: str | None
    """The account that it is taken from; None is the study's."""
    seconds: float
    """That it may still spend."""
    price_per_hour: float
    """Of what it occupies."""


@dataclass(frozen=True)
class Idle:
    """What stands by while cohorts run, per second of the clock."""

    machines: float = 0.0
    """How many machines, parts included."""
    price_per_hour: float = 0.0
    """Of all of it together."""


def kept(promises: Mapping[str, Promise], ledger: Ledger, idle: Idle) -> dict[str, float]:
    """Seconds that each cohort may still spend, at most what it was promised.

    Args:
        promises: by cohort; cohorts without a limit are left out.
        ledger: knows what is spent, by everyone.
    """
    found: dict[str, float] = {}
    for method in {promise.method for promise in promises.values()}:
        mine = {name: promise for name, promise in promises.items() if promise.method == method}
        factor = _factor(method, list(mine.values()), ledger, idle)
        found |= {name: promise.seconds * factor for name, promise in mine.items()}
    return found


def _factor(method: str | None, promises: Sequence[Promise], ledger: Ledger, idle: Idle) -> float:
    longest = max(promise.seconds for promise in promises)
    part = 1 / (len(ledger.methods) or 1) if method is not None else 1.0  # idle time is shared among all methods
    seconds = sum(promise.seconds for promise in promises) + part * idle.machines * longest
    dollars = sum(promise.seconds * promise.price_per_hour for promise in promises) / 3600
    dollars += part * idle.price_per_hour * longest / 3600
    factor = 1.0
    if ledger.limit_seconds is not None and seconds > 0:
        factor = min(factor, (ledger.limit_seconds - ledger.spent_seconds(method)) / seconds)
    if ledger.limit_dollars is not None and dollars > 0:
        factor = min(factor, (ledger.limit_dollars - ledger.spent_dollars(method)) / dollars)
    return max(0.0, factor)
