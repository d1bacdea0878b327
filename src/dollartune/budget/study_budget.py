"""From a study's `budget:` to a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import BudgetSettings, Limit
from dollartune.budget.prices import find_price
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.trial import Trial


def machine_price(settings: StudySettings) -> float:
    """Dollars per hour of a machine, as the study's budget says; 0 where it does not."""
    budget = settings.budget
    return 0.0 if budget is None else find_price(budget.price, budget.machine)


def require_price(budget: BudgetSettings | None, price_per_hour: float) -> None:
    """Refuses dollars on a machine whose price nobody gave.

    Raises:
        UserError: a budget in dollars without a price.
    """
    if budget is not None and budget.dollars is not None and price_per_hour <= 0:
        raise UserError(
            f"budget: {budget.dollars} dollars need the price of this machine.",
            hint="Add `price: 2.49/h` or `machine: NAME` (dollartune machines ls) to `budget:`, or run with --price.",
        )


def ledger_for(
    settings: StudySettings, trials: Sequence[Trial], path: Path | None, price_per_hour: float | None = None
) -> Ledger:
    """The ledger of a study.

    Args:
        price_per_hour: of what a unit of trials occupies, where units are run on other machines: this process, which waits
            for them, then costs nothing.

    Raises:
        UserError: a budget in dollars without a price.
    """
    budget = settings.budget
    price = machine_price(settings) if price_per_hour is None else price_per_hour
    require_price(budget, price)
    groups = list(dict.fromkeys(trial.variant.group for trial in trials))
    limit = Limit(None, None) if budget is None else budget.limit(len(trials))
    per_method = budget is not None and budget.per == "method"
    return Ledger(
        price_per_hour=price,
        limit_seconds=limit.seconds,
        limit_dollars=limit.dollars,
        per="method" if per_method else "study",
        methods=groups if per_method else (),
        path=path,
        # The driver of a cluster waits; the machines that work are booked at their own prices.
        own_price=None if price_per_hour is None else 0.0,
    )


MEASURES_SHARE = 0.1
"""Of a final trial's time limit, so much is for forgetting and the cost of a request, where they are measured: both take a
second or two with a small model, and what they have not done by then is left out."""
MOST_RESERVE = 0.9
"""Whatever a study reserves, a tenth of a final trial's time limit is for tuning."""
GROWN = 1.001
"""A budget that is larger by less than a thousandth is the same one: dollars and seconds are turned into each other."""


def reserve_of(settings: StudySettings, budget: BudgetSettings) -> float:
    """Share (0 to 1) of a final trial's time limit that is not for tuning."""
    measures = settings.evaluation.forgetting or settings.evaluation.inference_cost
    # On top of the user's reserve, which is meant for evaluating and writing: the measures must not eat it.
    return min(MOST_RESERVE, budget.reserve + (MEASURES_SHARE if measures else 0.0))


def budget_of(ledger: Ledger) -> dict[str, object]:
    """The budget of a study, as it is stored with what was done under it."""
    return {"seconds": ledger.limit_seconds, "dollars": ledger.limit_dollars, "per": ledger.per}


def memory_of(settings: StudySettings) -> int | None:
    """Most bytes of memory that a study may take; None where they are not limited."""
    return None if settings.budget is None else settings.budget.memory_bytes


def more_memory(before: int | None, now: int | None) -> bool:
    """Whether more memory may be taken now than then: what did not fit may fit now."""
    return before is not None and (now is None or now > before)


def grew(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether there is more money now: what the budget ended then may go on."""
    # Then amounts cannot be compared, and going on costs less than a study that stands still for no reason.
    if before.get("per") != now.get("per"):
        return True
    pairs = [(before.get(name), now.get(name)) for name in ("seconds", "dollars")]
    # A limit that is gone has grown beyond bounds.
    return any(old is not None and (new is None or new > old * GROWN) for old, new in pairs)
