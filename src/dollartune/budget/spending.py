"""What was spent of a budget: one calculation for `status`, the report and whoever else asks, so that they agree.

An account is whoever spends: the study, or one method of it. What is booked for no method (loading the backbone, planning,
waiting) is shared: with a budget per method each method bears an equal part of it, as the ledger does while a study runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dollartune import format as numbers

if TYPE_CHECKING:
    from dollartune.budget.limit import BudgetSettings, Limit
    from dollartune.budget.totals import Totals
    from dollartune.trials.record import TrialRecord

STUDY = "the study"
WHO = {"method": "for each method", "study": "for the whole study", "trial": "for each trial"}


@dataclass(frozen=True)
class AccountSpending:
    """One account: its time alone, and its part of what all share."""

    account: str
    """A method, or `the study`."""
    alone_seconds: float
    shared_seconds: float
    dollars: float
    limit: Limit | None = None
    """None where nothing limits this account."""

    @property
    def seconds(self) -> float:
        return self.alone_seconds + self.shared_seconds

    @property
    def share_of_budget(self) -> float | None:
        """1 is the whole budget; where both time and money are limited, the larger share."""
        if self.limit is None:
            return None
        shares = [self.seconds / self.limit.seconds] if self.limit.seconds else []
        shares += [self.dollars / self.limit.dollars] if self.limit.dollars else []
        # The limit that is nearer to its end is the one that will stop the work.
        return max(shares, default=None)

    @property
    def sentence(self) -> str | None:
        """`lora: used 0:39 of the 1:00 budget (66 %).`; None without a budget."""
        if self.limit is None or self.share_of_budget is None:
            return None
        amounts = []
        if self.limit.seconds:
            amounts.append(f"{numbers.clock(self.seconds)} of the {numbers.clock(self.limit.seconds)} budget")
        if self.limit.dollars:
            amounts.append(f"{numbers.dollars(self.dollars)} of the {numbers.dollars(self.limit.dollars)} budget")
        return f"{self.account}: used {' and '.join(amounts)} ({numbers.percent(self.share_of_budget)})."


def budget_in_words(budget: BudgetSettings) -> str:
    """`$1.00 and 2 min 00 s for each method`."""
    amounts = [numbers.dollars(budget.dollars)] if budget.dollars is not None else []
    amounts += [numbers.seconds(budget.seconds)] if budget.seconds is not None else []
    return f"{' and '.join(amounts)} {WHO[budget.per]}"


def spending_by_method(totals: Totals, methods: Sequence[str], limit: Limit | None = None) -> list[AccountSpending]:
    """Of each method, with its equal part of what all share.

    Args:
        methods: of the study, among which what is shared is divided.
        limit: of each method alone.
    """
    parts = max(1, len(methods))
    # By dollars and not by seconds times a price: machines of a study may have several prices.
    shared_dollars = (totals.dollars - sum(totals.dollars_by_method.values())) / parts
    return [
        AccountSpending(
            name,
            totals.by_method.get(name, 0.0),
            totals.shared_seconds / parts,
            totals.dollars_by_method.get(name, 0.0) + shared_dollars,
            limit,
        )
        for name in methods
    ]


def paying_trials(planned: Sequence[str] | None, records: Sequence[TrialRecord]) -> int:
    """How many trials of a study have money of their own, where a budget is for each of them: baselines have none.

    Args:
        planned: identifiers of all trials; None where nobody wrote them down.
        records: those that there are.
    """
    baselines = {record.id for record in records if record.trial.baseline}
    return len({record.id for record in records} - baselines if planned is None else set(planned) - baselines)


def spending(
    budget: BudgetSettings | None, totals: Totals, methods: Sequence[str], trials: int
) -> list[AccountSpending]:
    """Of each account that the budget limits: the methods, or the study; empty without a limit.

    Args:
        methods: of the study.
        trials: how many the study has; with a budget per trial they pool what each of them gets.
    """
    if budget is None or not budget.limited:
        return []
    limit = budget.limit(trials)
    if budget.per == "method":
        return spending_by_method(totals, methods, limit)
    return [AccountSpending(STUDY, totals.seconds, 0.0, totals.dollars, limit)]
