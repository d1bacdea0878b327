"""The fair fight in one cell: a method searches for a part of its money, then runs the best setting on every seed.

    measure cost -> plan (search_plan) -> ask, try, tell ... -> the best by validation score -> final trials on all seeds

Where the money does not pay for whole trainings they are shorter, with schedules that end there; where it does not pay
for all seeds there are fewer; and the study says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.budget.study_budget import reserve_of
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
from dollartune.errors import UserError
from dollartune.planner.trial_cost import TRAINING_MARGIN, TrialCost
from dollartune.schedule.cells import Cell, identity, in_cohorts
from dollartune.schedule.optuna_search import OptunaSearch, Proposal, load_libraries
from dollartune.schedule.scheduler import (
    PATIENCE,
    Account,
    AccountPart,
    CellScheduler,
    StateFile,
    TrialOutcome,
    time_limit,
)
from dollartune.schedule.search_plan import Finals, SearchPlan, affordable_search, finals_for
from dollartune.trials.record import SearchFacts, TrialRecord

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import SearchSettings, StudySettings
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

MOST = 50
"""Settings that are tried at most, where the study does not say: TPE gains little after 50 in these spaces of two to four
dimensions."""
MOST_WITHOUT_LIMIT = 12
"""The same without a budget: nobody says when to stop then, and a dozen whole trainings are what people wait for."""
ASKS_PER_SETTING = 4
"""A sampler that proposes what was tried already is asked again, so many times per setting at most: the space is used up."""
REPLAN_AFTER = (1, 3, 6)
"""Search trials after which the money is looked at again: the first one shows an evaluation that is much cheaper than
measured, the others confirm it; later there is too little left to gain."""
MOST_REPLANS = 3
"""A search begins again so many times at most, as what was tried before counts no more."""
WORTH_REPLANNING = 1.3
"""The search begins again only for trials that are longer by that factor: a smaller gain does not pay for the trials that
are given up."""
LEAST_CORRECTION = 0.05
"""Measured costs are corrected by what trials took, by no smaller factor than this: a trial that took still less was odd (an
evaluation out of a cache), and must not decide about all the money."""
MOST_CORRECTION = 4.0
"""And by no larger one: a machine that slept, or that another program had for itself, goes on as before."""
MOMENT = 0.01
"""Seconds; a cost below that is no base for a ratio."""
NOTHING = TrialCost(0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Correction:
    """What trials really took, over what was measured."""

    training: float
    evaluating: float


@dataclass(frozen=True)
class Chosen:
    """The setting of the final trials, and what they get."""

    values: dict[str, object]
    seeds: int
    fraction: float


@dataclass
class SearchState:
    """What a search has decided, on disk."""

    cost: TrialCost | None = None
    broken: bool = False
    """Whether the method cannot even be measured."""
    account: AccountPart | None = None
    plan: SearchPlan | None = None
    replans: int = 0
    correction: Correction | None = None
    """Of the search before it began again."""
    journal: list[dict[str, object]] = field(default_factory=list)
    """What was asked and told; see `OptunaSearch`."""
    outcomes: dict[str, TrialOutcome] = field(default_factory=dict)
    """By search trial: what it left."""
    tried: int = 0
    """Settings that were tried, once the best is chosen."""
    chosen: Chosen | None = None

    @classmethod
    def from_version_1(cls, values: Mapping[str, Any]) -> SearchState | None:
        """A search of 0.1 that had chosen keeps its choice; any other is begun anew, with the records that it left."""
        finals, plan = values.get("finals"), values.get("division")
        if finals is None or plan is None:
            return None
        told = {event[1] for event in values.get("events") or [] if event[0] == "tell"}
        return cls(
            cost=TrialCost(**values["pace"]) if values.get("pace") else None,
            broken=bool(values.get("broken")),
            account=AccountPart(values["seconds"], values["began"]),
            plan=SearchPlan(plan["tries"], plan["try_fraction"], Finals(**plan["finals"])),
            tried=len(told),
            chosen=Chosen(finals["values"], finals["seeds"], finals["fraction"]),
        )


class SearchScheduler(CellScheduler):
    """One method in one cell.

    Args:
        cell: where.
        space: what may be tried.
        search: how.
        together: most trials of a cohort.
    """

    def __init__(
        self,
        settings: StudySettings,
        store: Store,
        ledger: Ledger,
        cell: Cell,
        space: SearchSpace,
        search: SearchSettings,
        together: int = 1,
    ) -> None:
        super().__init__()
        self.settings, self.ledger, self.cell, self.space, self.together = settings, ledger, cell, space, together
        self.account = space.group
        self.seeds = cell.seeds[space.group]
        self.limited = ledger.limit_seconds is not None or ledger.limit_dollars is not None
        most = search.trials or (MOST if self.limited else MOST_WITHOUT_LIMIT)
        # A grid has so many settings and no more; a method without a search space has nothing to try.
        self.most = min(most, space.most or most) if space.space else 0
        # Without a limit everything is paid anyway, and trainings need not be cut for what follows them.
        self.reserve = reserve_of(settings, settings.budget) if settings.budget is not None and self.limited else 0.0
        self.search = search
        self._file = StateFile(
            store, ledger, identity(cell, [space], search, "search"), SearchState, SearchState.from_version_1
        )
        self.state = self._file.read() or SearchState()
        self._optuna = self._open(self.state.journal)
        self._finals_done: set[str] = set()
        self._waiting: dict[str, int] = {}
        self._slots = self._side_by_side = 1

    def _open(self, journal: Sequence[Mapping[str, Any]]) -> OptunaSearch:
        search, first = self.search, self.space.first
        return OptunaSearch(
            self.space.space, search.seed, search.sampler, first=first, pruner=search.pruner, journal=journal
        )

    # The contract

    @property
    def finals(self) -> list[Trial]:
        chosen = self.state.chosen
        if chosen is None:
            return []
        variant = self.space.variant(chosen.values)
        return [self.cell.trial(variant, seed, chosen.fraction) for seed in self.seeds[: chosen.seeds]]

    @property
    def expected_finals(self) -> int:
        return len(self.seeds) if self.state.chosen is None else len(self.finals)

    @property
    def prunes(self) -> bool:
        """Only where trials run one after the other: a pruner compares with those before."""
        # Side by side the answer would depend on which trial reported first, and a study repeated would differ.
        return self.state.chosen is None and self._slots == 1 and self.search.pruner != "none"

    def prepare(self) -> None:
        load_libraries()

    def to_measure(self) -> Sequence[Trial]:
        # Without a limit nothing is planned by cost, so a measurement would only be paid.
        if not self.limited or self.state.cost is not None:
            return ()
        return [self.cell.trial(self.space.variants[0], self.seeds[0], 1.0)]

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        """Where a method cannot be measured, its one final trial says why by its record."""
        if cost is None:
            self.note(f"{self.space.group} could not be measured: {error}")
        self.state.cost, self.state.broken = cost or NOTHING, cost is None
        self._save()

    def begin(self, part: float) -> None:
        if self.state.account is None:
            self.state.account = Account.take(self.ledger, self._payer, part)
            self._save()
        if self.state.plan is None:
            # one, to record why
            self.state.plan = SearchPlan(0, 0.0, Finals(1, 1.0)) if self.state.broken else self._affordable()
            self._save()

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        self._slots = slots
        cohorts = self._search_trials() if self.state.chosen is None else []
        if not cohorts:
            if self.state.chosen is None:
                self._choose()
            cohorts = self._final_trials()
        self._side_by_side = max(1, min(len(cohorts), slots))
        return cohorts

    def done(self, trial: Trial, record: TrialRecord) -> None:
        if self.state.chosen is not None:
            self._finals_done.add(trial.identifier)  # follows from the records, so that it need not be written down
        else:
            self.state.outcomes[trial.identifier] = TrialOutcome.of(record)
            self._save()

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """Search trials leave the final trials their money; final trials share what is left."""
        if not self.limited:
            return TimeLimit(math.inf)
        if cohort.purpose == "search":
            # Trials of a cohort are trained in one pass but the cost is that of one: together they take at most the
            # sum.
            expected = PATIENCE * self._cost().tried(self._plan.fraction) * len(cohort.trials)
            seconds = min(self._for_search() / self._side_by_side, expected)
            return time_limit(seconds, cohort, costs, self.settings, self._payer)
        waiting = sum(trial.identifier not in self._finals_done for trial in self.finals)
        seconds = self._account.left() * len(cohort.trials) / max(1, waiting)
        return time_limit(seconds, cohort, costs, self.settings, self._payer, self.reserve)

    def facts(self, trial: Trial) -> SearchFacts | None:
        chosen = self.state.chosen
        if chosen is None:
            return None
        return SearchFacts(
            tried=self.state.tried,
            try_fraction=self._plan.fraction,
            fraction=chosen.fraction,
            seeds=chosen.seeds,
            seeds_wanted=len(self.seeds),
            sentence=self._sentence(),
        )

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """The pruner's word on a search trial; final trials are never ended by it."""
        number = self._waiting.get(trial.identifier)
        if number is None or self.state.chosen is not None:
            return False
        # The search maximizes.
        hopeless = self._optuna.report(number, step, -loss)
        self._save()
        return hopeless

    # Search trials

    def _search_trials(self) -> list[Cohort]:
        """Asks until there is something to run; empty when settings or the money for them are at an end."""
        while True:
            # Waiting proposals come first: after a kill they are those that the journal asked and nobody answered.
            if not self._optuna.waiting and not self._ask():
                return []
            trials = {proposal.number: self._trial(proposal) for proposal in self._optuna.waiting}
            self._waiting = {trial.identifier: number for number, trial in trials.items() if trial is not None}
            missing = [t for t in trials.values() if t is not None and t.identifier not in self.state.outcomes]
            if missing:
                why = f"{self.cell.name(self.account)}: {len(missing)} of {self._plan.search_trials or self.most} settings"
                return in_cohorts(missing, self.together, "search", why)
            for number, trial in trials.items():  # in the order in which they were asked, however they came back
                outcome = None if trial is None else self.state.outcomes[trial.identifier]
                score, pruned = (None, False) if outcome is None else (outcome.score, outcome.pruned)
                self._optuna.tell(number, score, pruned)
            self._save()
            self._replan()

    def _ask(self) -> bool:
        """Proposes as many settings as run side by side; False where there are no more, or no money for them."""
        if not self._plan.search_trials:
            return False
        # Whole batches: a sampler learns from those that are told, so asking more than can run would be asking blindly.
        count = min(self._slots * self.together, self.most - len(self._tried()))
        if count <= 0 or len(self._optuna.history) >= ASKS_PER_SETTING * self.most:
            return False
        # All of them or none: a batch that runs out of money half way would have asked settings that nobody scores.
        if self.limited and self._for_search() < count * self._cost().tried(self._plan.fraction):
            return False
        for _ in range(count):
            self._optuna.ask()
        self._save()
        return True

    def _trial(self, proposal: Proposal) -> Trial | None:
        """The trial of a proposal; None where the method refuses its settings together, which counts as a failure."""
        try:
            return self.cell.trial(self.space.variant(proposal.values), self.seeds[0], self._plan.fraction)
        except UserError:
            return None

    def _tried(self) -> dict[str, Trial]:
        # By identifier: a proposal that repeats an earlier one is not another setting.
        trials = (self._trial(proposal) for proposal, _ in self._optuna.history)
        return {trial.identifier: trial for trial in trials if trial is not None}

    def _replan(self) -> None:
        """Divides the money anew where search trials turn out to be much cheaper than measured; the search then begins
        again with longer ones, which say more about the end of a whole training."""
        if not self.limited or len(self._tried()) not in REPLAN_AFTER or self.state.replans >= MOST_REPLANS:
            return
        correction, plan = self._correction(), self._affordable()
        # Only longer trials are a reason. Cheaper ones of the same length are used anyway: the search goes on until the
        # money for it ends.
        if not plan.search_trials or plan.fraction < WORTH_REPLANNING * self._plan.fraction:
            return
        self.state.plan, self.state.correction, self.state.replans = plan, correction, self.state.replans + 1
        # Scores of shorter trainings are not comparable with the new ones, so TPE must not learn from them.
        self._optuna = self._open([])
        self._save()

    def _choose(self) -> None:
        """Chooses the setting with the best validation score, and what its final trials get."""
        finals = Finals(len(self.seeds), 1.0)
        if self.state.broken:
            finals = Finals(1, 1.0)
        elif self.limited:
            # By what is left now, not by the plan: what the search did not use makes final trials longer or adds seeds.
            finals = finals_for(self._cost(), self._account.plannable(), len(self.seeds), self.reserve)
        best = self._best()
        # Nothing was scored: the default (no values), or of a grid its first entry, since a grid has no default.
        values = dict(best.values) if best is not None else self.space.first[0] if self.space.grid else {}
        self.state.tried = len(self._tried())
        self.state.chosen = Chosen(values, finals.seeds, finals.fraction)
        self._save()
        self.note(self._sentence())

    def _best(self) -> Proposal | None:
        """The best search trial; of equal scores the one with the lower validation loss, then the earlier one."""

        def rank(pair: tuple[Proposal, float | None]) -> tuple[float, float, int]:
            proposal, score = pair
            trial = self._trial(proposal)
            assert trial is not None
            assert score is not None
            # Accuracy on a few hundred rows ties often, and the loss still tells settings apart.
            loss = self.state.outcomes[trial.identifier].validation_loss
            return score, -loss if loss is not None else -math.inf, -proposal.number

        scored = [pair for pair in self._optuna.history if pair[1] is not None]
        return max(scored, key=rank)[0] if scored else None

    def _final_trials(self) -> list[Cohort]:
        waiting = [trial for trial in self.finals if trial.identifier not in self._finals_done]
        return in_cohorts(waiting, self.together, "final", self._sentence())

    # Money

    @property
    def _payer(self) -> str | None:
        """Whose account pays; None is the study's."""
        return self.space.group if self.ledger.per == "method" else None

    @property
    def _account(self) -> Account:
        assert self.state.account is not None, "begin() comes first"
        return Account(self.ledger, self._payer, self.state.account)

    @property
    def _plan(self) -> SearchPlan:
        assert self.state.plan is not None, "begin() comes first"
        return self.state.plan

    def _affordable(self) -> SearchPlan:
        return affordable_search(self._cost(), self._account.plannable(), len(self.seeds), self.most, self.reserve)

    def _cost(self) -> TrialCost:
        """As it was measured, corrected by what search trials really took."""
        measured = self.state.cost or NOTHING
        correction = self._correction()
        return measured if correction is None else measured.corrected(correction.training, correction.evaluating)

    def _correction(self) -> Correction | None:
        """By the median of the trials, as the first one warms up."""
        measured, training, evaluating = self.state.cost or NOTHING, [], []
        trials = self._tried() if self.state.plan is not None else {}
        for name, trial in trials.items():
            outcome = self.state.outcomes[name]
            # A pruned trial was shorter than expected by intent, and a final one's evaluation has the test rows too.
            if not outcome.search_trial or outcome.pruned:
                continue
            trained = outcome.training_seconds
            evaluating.append((outcome.seconds - (trained or 0.0)) / max(MOMENT, measured.try_seconds))
            if trained is not None:
                # Against the measurement itself: with the margin in it every trial would look faster than measured.
                expected = measured.training(trial.fraction) / TRAINING_MARGIN
                training.append(trained / max(MOMENT, expected))
        if not evaluating:
            # Of the search before, whose journal was emptied: what it learnt of the costs still holds.
            return self.state.correction
        ratios = median(training or [1.0]), median(evaluating)
        return Correction(*(min(MOST_CORRECTION, max(LEAST_CORRECTION, ratio)) for ratio in ratios))

    def _for_search(self) -> float:
        """Seconds left for search trials: what the final trials need is a reserve."""
        return self._account.plannable() - self._plan.finals.seconds(self._cost(), self.reserve)

    def _save(self) -> None:
        self.state.journal = self._optuna.journal
        self._file.write(self.state)

    # Words

    def _sentence(self) -> str:
        chosen, tried = self.state.chosen, self.state.tried
        assert chosen is not None
        where, label = self.cell.name(self.account), self.finals[0].variant.label
        if tried and self._best() is None:
            none = f"none of {tried} settings gave a score" if tried > 1 else "the one setting tried gave no score"
            text = f"{where}: {none}, so {label} is run as it is"
        elif tried == 1:  # the best of one says nothing
            text = f"{where}: 1 setting tried, {label}"
        elif tried:
            text = f"{where}: {label} scored highest on the validation rows, of {tried} settings tried"
        elif self.space.space:
            text = f"{where}: the budget is too small for a search, so {label} is run as it is"
        else:
            text = f"{where}: {label} has no settings to search"
        length = f"{numbers.percent(chosen.fraction)} of the training" if chosen.fraction < 1 else "all of the training"
        seeds = f"{chosen.seeds} of {len(self.seeds)} seeds" if chosen.seeds < len(self.seeds) else "all seeds"
        template = self.cell.templates[self.space.group]
        # What is solved in closed form has no length, and what trains nothing neither.
        if template.trains and not template.solved and (chosen.fraction < 1 or chosen.seeds < len(self.seeds)):
            return f"{text}; the budget pays for {length} on {seeds}."
        return f"{text}."
