"""From a study's `budget:` to a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import BudgetSettings, Limit
from dollartune.budget.prices import find_price
from dollartune.config import StudySettings
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.trials.trial import Trial


def machine_price(settings: StudySettings) -> float:
    """Dollars per hour of a machine, as the study's budget says; 0 where it does not."""
    budget = settings.budget
    return 0.0 if budget is None else find_price(budget.price, budget.machine)


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
    if budget is not None and budget.dollars is not None and price <= 0:
        raise UserError(
            f"budget: {budget.dollars} dollars need the price of this machine.",
            hint="Add `price: 2.49/h` or `machine: NAME` (dollartune machines ls) to `budget:`, or run with --price.",
        )
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
        own_price=None if price_per_hour is None else 0.0,
    )


def kept_back(settings: StudySettings, budget: BudgetSettings) -> float:
    """Share (0 to 1) of a final trial's money that is not for tuning: the reserve, and a tenth for further measures."""
    measures = settings.evaluation.forgetting or settings.evaluation.inference_cost
    return min(0.9, budget.reserve + (0.1 if measures else 0.0))


def budget_of(ledger: Ledger) -> dict[str, Any]:
    """What a study promises to keep to, as it is stored with what was done under it."""
    return {"seconds": ledger.limit_seconds, "dollars": ledger.limit_dollars, "per": ledger.per}


def grew(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether there is more money now: what the budget ended then may go on."""
    if before.get("per") != now.get("per"):
        return True
    pairs = [(before.get(name), now.get(name)) for name in ("seconds", "dollars")]
    return any(old is not None and (new is None or new > old * 1.001) for old, new in pairs)
