"""What was spent, from the ledger: by what it was spent on, by method, and of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.budget.spending import AccountSpending, budget_in_words, paying_trials, spending, spending_by_method
from dollartune.study.status import accounts_of

if TYPE_CHECKING:
    from dollartune.budget.limit import BudgetSettings
    from dollartune.report.contents import Contents

# The ledger's categories in words; new ones show under their own name.
CATEGORIES = {
    "load": "loading the backbone and data",
    "tune": "tuning",
    "evaluate": "evaluation",
    "export": "writing adapters",
    "failure": "attempts that failed",
    "plan": "planning",
    "report": "writing the report",
    "other": "all else",
}


def budget_of(contents: Contents) -> BudgetSettings | None:
    """The study's budget; None where nothing is limited, or the study file cannot be read."""
    budget = contents.settings.budget if contents.settings is not None else None
    return budget if budget is not None and budget.limited else None


def trials_of(contents: Contents) -> int:
    """How many trials of the study have money of their own, whether they have run or not."""
    return paying_trials(contents.results.store.planned(), contents.results.everything)


def by_category(contents: Contents) -> list[tuple[str, float, float, float]]:
    """(what, seconds, share of all, dollars), largest first."""
    totals = contents.ledger
    if totals is None or not totals.seconds:
        return []
    rows = [
        (CATEGORIES.get(name, name), s, s / totals.seconds, totals.dollars_by_category.get(name, 0.0))
        for name, s in totals.by_category.items()
        if s > 0
    ]
    return sorted(rows, key=lambda row: -row[1])


def by_method(contents: Contents) -> list[AccountSpending]:
    """Each method's spending, in the order of the study; with the limit of each where the budget is per method."""
    totals, budget = contents.ledger, budget_of(contents)
    if totals is None:
        return []
    # As `status` has it, and the ledger while a study runs.
    accounts = accounts_of(contents.results.store, contents.results.everything)
    methods = list(dict.fromkeys([*contents.methods, *accounts, *totals.by_method]))
    compared = [name for name in methods if name in accounts] or methods
    # By the planned number of trials, not by the records: a study may be read while it runs.
    limit = budget.limit(trials_of(contents)) if budget is not None and budget.per == "method" else None
    alone = [
        AccountSpending(name, totals.by_method.get(name, 0.0), 0.0, totals.dollars_by_method.get(name, 0.0))
        for name in methods
        if name not in compared
    ]
    spent = [*spending_by_method(totals, compared, limit), *alone]
    # A method that has not begun is no line of the table.
    return [one for one in spent if one.account in totals.by_method]


def spent_of_budget(contents: Contents) -> str | None:
    """Whether the budget was kept, in a sentence; None without a budget or bookings."""
    totals, budget = contents.ledger, budget_of(contents)
    if totals is None or budget is None:
        return None
    spent = (
        by_method(contents)
        if budget.per == "method"
        else spending(budget, totals, contents.methods, trials_of(contents))
    )
    most = max((one.share_of_budget or 0.0 for one in spent), default=0.0)
    over = [one.account for one in spent if (one.share_of_budget or 0.0) > 1]
    text = f"Budget: {budget_in_words(budget)}."
    if budget.per == "method":
        verdict = f"Overspent by {numbers.listed(over)}: up to" if over else "No method used more than"
        return f"{text} {verdict} {numbers.percent(most)} of it."
    return f"{text} {'Overspent: ' if over else 'Used: '}{numbers.percent(most)} of it."
