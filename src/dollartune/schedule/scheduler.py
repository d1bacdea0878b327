"""The contract of schedulers: the runner asks which cohorts run next, and tells what their trials left.

    runner                                   scheduler
    engine.measure(trial)       <─────────   to_measure()           what each method costs, before anything is decided
                                ─────────>   measured(trial, cost)
    engine.run(cohorts)         <─────────   next_cohorts(slots)    empty: nothing is left to do
      a cohort's data is loaded ─────────>   time_limit(cohort, costs)
      a validation loss         ─────────>   prune(trial, step, loss)
      a record                  ─────────>   done(trial, record)
    plan, results, display      <─────────   finals, expected_finals, facts(trial), new_notes()

A scheduler knows no engine, no store of records and no display. What has a record already is answered by the runner from
the store, so that a scheduler needs no other way for a study that goes on after a kill. Whatever was decided by the clock
or by chance stands in its state file before it is acted on; the rest follows from that and from the records.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from dollartune.budget.deadline import BudgetSpent, closing_seconds
from dollartune.budget.study_budget import budget_of, grew
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit, evaluation_seconds

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.trials.record import SearchFacts, TrialRecord
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

PLANNED_SHARE = 0.97
"""Of what is left, so much is planned with: the ledger books things between trials that no measured cost contains
(a search's own computing, writing its state), a few hundredths of a study in all."""
UNPLANNED_SECONDS = 0.3
"""Kept out of plans beside that, because those things take some tenths of a second even in the shortest study."""
PATIENCE = 2.5
"""A search trial that takes this many times what was expected is ended. Lengths of rows and a busy machine make single
trials up to twice as long as the median; beyond that something else is wrong, and it would eat the others' money."""


class Scheduler(ABC):
    """Decides which cohort runs next and for how long. See the picture above for who calls what."""

    account: str | None = None
    """The method whose account pays for what happens now; None: the study's."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    @property
    @abstractmethod
    def finals(self) -> list[Trial]:
        """The trials that results are about, as far as they are decided, in the order in which they were."""

    @property
    def expected_finals(self) -> int:
        """How many there will be in the end, as well as that can be said now; exact before the first of them is run."""
        return len(self.finals)

    @property
    def prunes(self) -> bool:
        """Whether `prune` may end trials of the cohorts that were asked for last."""
        return False

    @property
    def baselines_due(self) -> bool:
        """Whether the study's baselines may be run now."""
        return True

    @property
    def keeps(self) -> set[str]:
        """Trials whose adapters may still be handed over, beside the best one by its validation score."""
        return set()

    def prepare(self) -> None:
        """Imports what deciding needs, before money is divided: it takes a moment."""
        return  # most need nothing more

    def to_measure(self) -> Sequence[Trial]:
        """Trials whose cost must be known before anything can be planned."""
        return ()

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        """What a trial of `to_measure` costs; None where it cannot even be measured, and why."""
        raise NotImplementedError

    @abstractmethod
    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        """What to run now; empty when nothing is left to do. Decisions are made here and nowhere else, in an order that
        does not depend on the order in which records came.

        Args:
            slots: how many cohorts the engine runs side by side.
        """

    @abstractmethod
    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """What a cohort may spend, asked once its backbone and data are loaded.

        Raises:
            BudgetSpent: that would not even pay for its evaluation.
        """

    @abstractmethod
    def done(self, trial: Trial, record: TrialRecord) -> None:
        """The record of a trial that was asked for, new or of an earlier run."""

    def facts(self, trial: Trial) -> SearchFacts | None:
        """What the record of a final trial should say about how it was chosen; None where nothing was."""
        return None

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """Whether a trial should end now: its validation loss after so many optimizer steps is hopeless."""
        return False

    def note(self, text: str) -> None:
        """Keeps a sentence about a decision for the log."""
        self._notes.append(text)

    def new_notes(self) -> list[str]:
        """What was decided since the last call, in sentences."""
        notes, self._notes = self._notes, []
        return notes


class CellScheduler(Scheduler):
    """A scheduler for one cell (backbone, task, scale) of a study; see `cells.SequentialScheduler`."""

    @abstractmethod
    def begin(self, part: float) -> None:
        """Takes its part (0 to 1) of what is left of its account, unless an earlier run has taken it."""


@dataclass(frozen=True)
class TrialOutcome:
    """What a scheduler wants to know of a record."""

    score: float | None
    """On the validation rows; None where the trial failed or was ended as hopeless."""
    standard_error: float
    """Of the score, over the validation rows."""
    seconds: float
    """Booked: tuning, evaluation, export."""
    training_seconds: float | None
    """Of them, tuning; None where nothing is trained."""
    validation_loss: float | None
    """The best one on the way."""
    search_trial: bool
    """Whether the test rows were left alone, so that it is no final trial."""
    pruned: bool = False

    @classmethod
    def of(cls, record: TrialRecord) -> TrialOutcome:
        pruned, training = record.stopped == "pruned", record.training
        return cls(
            # A pruned trial has a score, of a training cut short: beside those that went on it would be compared
            # unfairly.
            score=record.validation_score if record.status != "failed" and not pruned else None,
            standard_error=record.validation.standard_error if record.validation is not None else 0.0,
            seconds=record.cost.seconds,
            training_seconds=None if training is None else training.seconds,
            validation_loss=None if training is None else training.best_validation_loss,
            search_trial=record.status == "tried",
            pruned=pruned,
        )


# State on disk

StateType = TypeVar("StateType")


class StateFile(Generic[StateType]):
    """`searches/<hash>.json`: the state of one scheduler, a dataclass, written atomically.

    Args:
        identity: everything that must be the same for the state to be of use: the cell, the search space, the search.
        kind: the dataclass.
        from_version_1: reads what DollarTune 0.1 wrote; None where that is of no use any more.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        identity: Sequence[Any],
        kind: type[StateType],
        from_version_1: Callable[[Mapping[str, Any]], StateType | None],
    ) -> None:
        # Sorted, so that the same identity is the same file whatever the order of its keys; twelve digits of it are
        # unique among the cells of any study.
        text = json.dumps(identity, sort_keys=True, default=str)
        self.store, self.name = store, hashlib.sha256(text.encode()).hexdigest()[:12]
        self.budget = budget_of(ledger)
        self._adapter: TypeAdapter[StateType] = TypeAdapter(kind)
        self._from_version_1 = from_version_1

    def read(self) -> StateType | None:
        """None where nothing was decided, where the budget has grown since (then everything is decided anew, with the
        records that there are), and where the file is not one of ours: records are never lost by that."""
        values = self.store.read_state(self.name)
        if values is None:
            return None
        try:
            # 0.1 wrote "promise" for the budget, and no version.
            if grew(values["budget" if "version" in values else "promise"], self.budget):
                return None
            if "version" not in values:
                return self._from_version_1(values)
            return self._adapter.validate_python(values["state"])
        # Whatever is wrong with it, deciding anew costs little: trials that have a record are answered by the store.
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError):
            return None

    def write(self, state: StateType) -> None:
        values = self._adapter.dump_python(state, mode="json")
        self.store.write_state(self.name, {"version": 2, "budget": self.budget, "state": values})


# Money


@dataclass(frozen=True)
class AccountPart:
    """The part of an account that a scheduler has taken."""

    seconds: float
    """Infinity without a limit."""
    began: float
    """Seconds that had been spent from the account by then."""


class Account:
    """What one scheduler may spend: a part of what a method, or the study, has.

    Args:
        method: whose account; None is the study's.
        part: as it was taken when the scheduler began.
    """

    def __init__(self, ledger: Ledger, method: str | None, part: AccountPart) -> None:
        self.ledger, self.method, self.part = ledger, method, part

    @staticmethod
    def take(ledger: Ledger, method: str | None, part: float) -> AccountPart:
        """A part (0 to 1) of what is left now."""
        return AccountPart(ledger.remaining(method) * part, ledger.spent_seconds(method))

    def left(self) -> float:
        """Seconds that may still be spent."""
        part = self.part.seconds - (self.ledger.spent_seconds(self.method) - self.part.began)
        # others may have spent more than their part
        return min(part, self.ledger.remaining(self.method)) - closing_seconds()

    def plannable(self) -> float:
        """Seconds that plans may use."""
        # A share for what grows with a study, and seconds for what even the shortest one has.
        return PLANNED_SHARE * self.left() - UNPLANNED_SECONDS


def seconds_left(ledger: Ledger, method: str | None) -> float:
    """Seconds of a method's account, or of the study's, that trials may still use."""
    return ledger.remaining(method) - closing_seconds()


def time_limit(
    seconds: float,
    cohort: Cohort,
    costs: EvaluationCost,
    settings: StudySettings,
    method: str | None,
    reserve: float = 0.0,
) -> TimeLimit:
    """A time limit of that many seconds, if they pay for evaluating the cohort.

    Args:
        seconds: infinity without a limit.
        method: the account that pays; None is the study's.
        reserve: least part of it (0 to 1) for what follows the training.

    Raises:
        BudgetSpent: they do not.
    """
    # Asked before the training begins: one that could not be evaluated would leave no score, and its money would be
    # lost.
    seconds = min(seconds, cohort.limit_seconds)
    needed = 0.0 if math.isinf(seconds) else evaluation_seconds(cohort, costs, settings)
    if needed > seconds:
        raise BudgetSpent(
            f"{max(0.0, seconds):.1f} s are left for this trial, and evaluating it alone takes about {needed:.1f} s. "
            "Raise the budget, or evaluate fewer rows (evaluation: {rows: ...})."
        )
    return TimeLimit(seconds, reserve, method)
