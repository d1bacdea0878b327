"""From a study's `budget:` to a ledger."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dollartune.budget.ledger import Ledger
from dollartune.budget.limit import Budget
from dollartune.budget.prices import find_price
from dollartune.config import BudgetSettings, StudySettings
from dollartune.errors import UserError
from dollartune.study.trials import Trial


def budget_settings(settings: StudySettings) -> BudgetSettings | None:
    """The budget as a mapping of settings, however it was written (`$1`, `20 min`, `$5 per study`)."""
    budget = settings.budget
    if not isinstance(budget, str):
        return budget
    parsed = Budget.parse(budget)
    named = re.search(r"\b(per|each)\b", budget, re.IGNORECASE)  # a study's own default is the fair fight, per method
    return BudgetSettings(dollars=parsed.dollars, seconds=parsed.seconds, per=parsed.per if named else "method")


def ledger_for(settings: StudySettings, trials: Sequence[Trial], path: Path | None) -> Ledger:
    """The ledger of a study.

    Raises:
        UserError: a budget in dollars without a price.
    """
    budget = budget_settings(settings)
    price = 0.0
    if budget is not None and (budget.price is not None or budget.machine is not None):
        price = find_price(budget.price, budget.machine)
    if budget is not None and budget.dollars is not None and price <= 0:
        raise UserError(
            f"budget: {budget.dollars} dollars need the price of this machine.",
            hint="Add `price: 2.49/h` or `machine: NAME` (dollartune machines ls) to `budget:`, or run with --price.",
        )
    groups = list(dict.fromkeys(trial.variant.group for trial in trials))
    seconds = budget.seconds if budget is not None else None
    dollars = budget.dollars if budget is not None else None
    per = budget.per if budget is not None else "study"
    if per == "trial":  # every trial the same: the sum for all, divided equally as the trials come
        count = len(trials)
        seconds, dollars = (None if x is None else x * count for x in (seconds, dollars))
    return Ledger(
        price_per_hour=price,
        limit_seconds=seconds,
        limit_dollars=dollars,
        per="method" if per == "method" else "study",
        methods=groups if per == "method" else (),
        path=path,
    )
