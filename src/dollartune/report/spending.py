"""Spent against promised, from the ledger: by what it was spent on, and by method."""

from __future__ import annotations

from dataclasses import dataclass

from dollartune.report import numbers
from dollartune.report.contents import Contents

CATEGORIES = {
    "load": "loading the backbone and data",
    "tune": "tuning",
    "evaluate": "evaluation",
    "export": "writing adapters",
    "failure": "attempts that failed",
    "plan": "planning",
    "other": "between the rest",
}


@dataclass(frozen=True)
class Promise:
    """The budget, for the whole study or for each method alone."""

    seconds: float | None
    dollars: float | None
    per_method: bool
    text: str


@dataclass(frozen=True)
class MethodSpending:
    """One method: its own time, and its equal part of what all methods share."""

    method: str
    own_seconds: float
    shared_seconds: float
    dollars: float
    share_of_promise: float | None
    """1 is the whole promise; None where none was made to a method alone."""

    @property
    def seconds(self) -> float:
        return self.own_seconds + self.shared_seconds


def promise(contents: Contents) -> Promise | None:
    """What the study promised to keep to; None without a budget or a readable study file."""
    budget = contents.settings.budget if contents.settings is not None else None
    if budget is None or (budget.dollars is None and budget.seconds is None):
        return None
    amounts = [numbers.dollars(budget.dollars)] if budget.dollars is not None else []
    amounts += [numbers.seconds(budget.seconds)] if budget.seconds is not None else []
    who = {"method": "for each method", "study": "for the whole study", "trial": "for each trial"}[budget.per]
    text = f"{' and '.join(amounts)} {who}"
    times = (
        len(contents.results.records) if budget.per == "trial" else 1
    )  # the sum of all trials' budgets is what binds
    seconds, dollars = (None if x is None else x * times for x in (budget.seconds, budget.dollars))
    return Promise(seconds, dollars, budget.per == "method", text)


def by_category(contents: Contents) -> list[tuple[str, float, float]]:
    """(what, seconds, share of all), largest first."""
    totals = contents.ledger
    if totals is None or not totals.seconds:
        return []
    rows = [(CATEGORIES.get(name, name), s, s / totals.seconds) for name, s in totals.by_category.items() if s > 0]
    return sorted(rows, key=lambda row: -row[1])


def by_method(contents: Contents) -> list[MethodSpending]:
    """Each method's spending, in the order of the study. Shared time (loading, waiting) is divided in equal parts."""
    totals, limit = contents.ledger, promise(contents)
    if totals is None:
        return []
    methods = [name for name in contents.methods if name in totals.by_method]
    methods += [name for name in totals.by_method if name not in methods]
    parts = len(contents.methods) or 1
    shared_dollars = (totals.dollars - sum(totals.dollars_by_method.values())) / parts
    found = []
    for name in methods:
        seconds = totals.by_method[name]
        shared = totals.shared_seconds / parts
        dollars = totals.dollars_by_method.get(name, 0.0) + shared_dollars
        shares = []
        if limit is not None and limit.per_method:
            shares += [dollars / limit.dollars] if limit.dollars else []
            shares += [(seconds + shared) / limit.seconds] if limit.seconds else []
        found.append(MethodSpending(name, seconds, shared, dollars, max(shares, default=None)))
    return found


def kept(contents: Contents) -> str | None:
    """Whether the promise was kept, in a sentence; None where nothing was promised or booked."""
    totals, limit = contents.ledger, promise(contents)
    if totals is None or limit is None:
        return None
    if limit.per_method:
        over = [row.method for row in by_method(contents) if (row.share_of_promise or 0) > 1]
        most = max((row.share_of_promise or 0 for row in by_method(contents)), default=0.0)
        verdict = f"overspent by {numbers.listed(over)}" if over else "kept"
        return f"Promised: {limit.text}. {verdict.capitalize()}: the most that one method used is {numbers.percent(most)} of it."
    shares = [totals.dollars / limit.dollars] if limit.dollars else []
    shares += [totals.seconds / limit.seconds] if limit.seconds else []
    used = max(shares)
    return f"Promised: {limit.text}. {'Kept' if used <= 1 else 'Overspent'}: {numbers.percent(used)} of it was used."
