"""The fair fight in one cell: a method tries settings for a part of its money, then runs the best one on every seed.

    measure trial_cost -> divide the money -> ask, try, tell ... -> the best by validation score -> final trials on all seeds

Where the money does not pay for whole trainings they are shorter, with schedules that end there; where it does not pay
for all seeds there are fewer; and the study says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from dollartune.budget.study_budget import kept_back
from dollartune.config import SearchSettings
from dollartune.engines.base import Cohort, Timed, TimeLimit
from dollartune.errors import UserError
from dollartune.planner.trial_cost import SPARE, Division, Finals, TrialCost, divide, finals_for
from dollartune.schedule.optuna_search import OptunaSearch, Proposal
from dollartune.schedule.scheduler import Account, Cell, Host, State, identity, in_cohorts, missing
from dollartune.schedule.search_space import SearchSpace
from dollartune.trials.record import SearchFacts
from dollartune.trials.trial import Trial

MOST, MOST_WITHOUT_LIMIT = 50, 12
"""Settings that are tried at most, where the study does not say."""
MOST_DIVISIONS = 3
PATIENCE = 2.5
"""A try that takes this many times what was expected is ended."""


class SearchScheduler:
    """One method in one cell.

    Args:
        host: the study.
        cell: where.
        candidates: what may be tried.
        search: how.
        part: of the method's remaining money that it gets (0 to 1).
    """

    def __init__(self, host: Host, cell: Cell, candidates: SearchSpace, search: SearchSettings) -> None:
        self.host, self.cell, self.candidates = host, cell, candidates
        self.group = candidates.group
        self.seeds = cell.seeds[self.group]
        limited = host.ledger.limit_seconds is not None or host.ledger.limit_dollars is not None
        self.limited = limited
        most = search.trials or (MOST if limited else MOST_WITHOUT_LIMIT)
        self.most = min(most, candidates.most or most) if candidates.space else 0
        self.state = State(host.store, host.ledger, identity(cell, [candidates], search, "search"))
        self.settings = search
        self.search = self._new_search()
        self.search.replay(self.state.get("events") or [])
        budget = host.settings.budget
        self.reserve = kept_back(host.settings, budget) if budget is not None and limited else 0.0
        self.account: Account | None = None
        self._waiting: dict[str, int] = {}
        self._running = 1

    def _new_search(self) -> OptunaSearch:
        pruner = self.settings.pruner if self.host.engine.slots == 1 else "none"
        space, first = self.candidates.space, self.candidates.first
        return OptunaSearch(space, self.settings.seed, self.settings.sampler, first=first, pruner=pruner)

    # What has been decided

    @property
    def finals(self) -> list[Trial]:
        """The final trials; empty while the search goes on."""
        decided = self.state.get("finals")
        if decided is None:
            return []
        variant = self.candidates.variant(decided["values"])
        return [self.cell.trial(variant, seed, decided["fraction"]) for seed in self.seeds[: decided["seeds"]]]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.finals) and not missing(self.host.store, self.finals, "final")

    def measure(self) -> None:
        """Learns what the method costs, once."""
        if self.limited and self.state.get("trial_cost") is None:
            template = self.cell.trial(self.candidates.variants[0], self.seeds[0], 1.0)
            try:
                trial_cost = self.host.engine.measure(template)
            except Exception as error:  # whatever it is, the final trial says it with its class
                self.host.display.note(f"{self.group} could not be measured: {error}")
                trial_cost = TrialCost(0, 0.0, 0.0, 0.0, 0.0, 0.0)
                self.state.save(broken=True)
            self.state.save(trial_cost=trial_cost.to_json())

    # The scheduler

    def run(self, part: float) -> list[Trial]:
        """Searches, runs the final trials, and returns them.

        Args:
            part: of the method's remaining money (0 to 1) that this cell gets, if it has got none yet.
        """
        method = self.group if self.host.ledger.per == "method" else None
        self.account = Account(self.host.ledger, method, self.state, part)
        if not self.finals:
            if self._division.tries:
                self._try_settings()
            self._decide()
        self.host.decided(self.finals)
        todo = missing(self.host.store, self.finals, "final")
        self._run(in_cohorts(todo, self._cohort, "final"))
        return self.finals

    @property
    def _cohort(self) -> int:
        return self.host.settings.training.most_together(self.host.engine.device)

    @property
    def _division(self) -> Division:
        if self.state.get("division") is None:
            assert self.account is not None
            if self.state.get("broken"):
                division = Division(0, 0.0, Finals(1, 1.0))
            else:
                division = divide(self._trial_cost(), self._usable(), len(self.seeds), self.most, self.reserve)
            self.state.save(division=asdict(division))
        stored = self.state["division"]
        return Division(stored["tries"], stored["try_fraction"], Finals(**stored["finals"]))

    def _trial_cost(self) -> TrialCost:
        return TrialCost(**self.state["trial_cost"]) if self.limited else TrialCost(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def _usable(self) -> float:
        """Seconds that may be planned with: a little is left for what nobody thought of."""
        assert self.account is not None
        return 0.97 * self.account.left() - 0.3

    def _try_settings(self) -> None:
        """Asks, tries and tells until the settings or the money for them are at an end."""
        while True:
            if not self.search.waiting:
                count = min(self.host.engine.slots * self._cohort, self.most - len(self._tried()))
                if count <= 0 or len(self.search.history) >= 4 * self.most or not self._pays_for(count):
                    return
                for _ in range(count):
                    self.search.ask()
                self._save()
            self._try(self.search.waiting)
            self._longer_tries()

    def _try(self, proposals: Sequence[Proposal]) -> None:
        """Runs proposals side by side and tells their scores in the order in which they were asked."""
        trials = {}
        for proposal in proposals:
            try:
                trials[proposal.number] = self._trial(proposal)
            except UserError:
                continue  # settings that the method refuses together count as a failure
        self._waiting = {trial.identifier: number for number, trial in trials.items()}
        self._run(in_cohorts(missing(self.host.store, trials.values(), "try"), self._cohort, "try"))
        for proposal in proposals:
            trial = trials.get(proposal.number)
            self.search.tell(proposal.number, self._score(trial) if trial is not None else None)
        self._save()

    def _trial(self, proposal: Proposal) -> Trial:
        return self.cell.trial(self.candidates.variant(proposal.values), self.seeds[0], self._division.try_fraction)

    def _run(self, cohorts: Sequence[Cohort]) -> None:
        self._running = max(1, min(len(cohorts), self.host.engine.slots))
        self.host.scheduler = self
        self.host.engine.run(cohorts, self._hopeless if self.search.pruner != "none" else None)

    def _hopeless(self, trial: Trial, step: int, loss: float) -> bool:
        """The pruner's word on a try; final trials are never ended by it."""
        number = self._waiting.get(trial.identifier)
        if number is None or number in {told.number for told, _ in self.search.history}:
            return False
        verdict = self.search.report(number, step, -loss)
        self._save()
        return verdict

    def _save(self) -> None:
        self.state.save(events=self.search.state())

    # Scores and money

    def _tried(self) -> dict[str, Trial]:
        found = {}
        for proposal, _ in self.search.history:
            try:
                trial = self._trial(proposal)
            except UserError:
                continue
            found[trial.identifier] = trial
        return found

    def _score(self, trial: Trial) -> float | None:
        """The validation score of a try; None where it failed or was ended early."""
        record = self.host.store.read(trial.identifier)
        return None if record.status == "failed" or record.stopped == "pruned" else record.validation_score

    def _real_pace(self) -> TrialCost:
        """The trial_cost as it was measured, corrected by what tries really took (the median, as the first one warms up)."""
        measured, training, evaluating = self._trial_cost(), [], []
        for trial in self._tried().values():
            record = self.host.store.read(trial.identifier)
            took = record.training
            if record.status == "tried" and record.stopped != "pruned":
                seconds = took.seconds if took is not None else 0.0
                evaluating.append((record.cost.seconds - seconds) / max(0.01, measured.try_seconds))
                if took is not None:
                    training.append(seconds / max(0.01, measured.training(trial.fraction) / SPARE))
        ratios = [median(training or [1.0]), median(evaluating or [1.0])] if evaluating else self.state.get("ratios")
        if ratios is None:
            return measured
        return measured.corrected(*(min(4.0, max(0.05, ratio)) for ratio in ratios))

    def _longer_tries(self) -> None:
        """Divides the money anew where tries turn out to be much cheaper than measured; the search then begins again
        with longer ones, which say more about the end of a whole training."""
        tried, times = len(self._tried()), self.state.get("divided") or 1
        if not self.limited or tried not in (1, 3, 6) or times > MOST_DIVISIONS:
            return
        trial_cost = self._real_pace()
        found = divide(trial_cost, self._usable(), len(self.seeds), self.most, self.reserve)
        if not found.tries or found.try_fraction < 1.3 * self._division.try_fraction:
            return
        ratios = [
            getattr(trial_cost, n) / max(1e-9, getattr(self._trial_cost(), n))
            for n in ("seconds_per_step", "try_seconds")
        ]
        self.state.save(division=asdict(found), divided=times + 1, ratios=ratios, events=[])
        self.search = self._new_search()

    def _pays_for(self, count: int) -> bool:
        if not self.limited:
            return True
        return self._for_tries() >= count * self._real_pace().tried(self._division.try_fraction)

    def _for_tries(self) -> float:
        """Seconds left for tries: what the final trials need is set aside."""
        return self._usable() - self._division.finals.seconds(self._real_pace(), self.reserve)

    def _decide(self) -> None:
        """Chooses the setting with the best validation score, and what its final trials get."""
        best = self._best()
        finals = Finals(len(self.seeds), 1.0)
        if self.state.get("broken"):
            finals = Finals(1, 1.0)
        elif self.limited:
            finals = finals_for(self._real_pace(), self._usable(), len(self.seeds), self.reserve)
        self.state.save(finals={**asdict(finals), "values": dict(best.values) if best is not None else self._default()})
        self.host.display.note(self._sentence())

    def _default(self) -> dict[str, Any]:
        return self.candidates.first[0] if self.candidates.grid else {}

    def _best(self) -> Proposal | None:
        """The best try; of equal scores the one with the lower validation loss, then the earlier one."""

        def rank(pair: tuple[Proposal, float | None]) -> tuple[float, float, int]:
            proposal, score = pair
            training = self.host.store.read(self._trial(proposal).identifier).training
            loss = training.best_validation_loss if training is not None else None
            assert score is not None
            return score, -loss if loss is not None else -math.inf, -proposal.number

        scored = [pair for pair in self.search.history if pair[1] is not None]
        return max(scored, key=rank)[0] if scored else None

    def _sentence(self) -> str:
        finals, tried = self.state["finals"], len(self._tried())
        template = self.cell.templates[self.group]
        where = f"{template.task}, {template.scale or 'all'} rows, {self.group}"
        what = self.finals[0].variant.label
        if tried:
            text = f"{where}: {what} is the best of {tried} settings tried"
        elif self.candidates.space:
            text = f"{where}: the money allows no search, so {what} is run as it is"
        else:
            text = f"{where}: {what} leaves nothing to search"
        share = f"{finals['fraction']:.0%} of the training" if finals["fraction"] < 1 else "the whole training"
        seeds = f"{finals['seeds']} of {len(self.seeds)} seeds" if finals["seeds"] < len(self.seeds) else "all seeds"
        if template.trains and (finals["fraction"] < 1 or finals["seeds"] < len(self.seeds)):
            return f"{text}; the money pays for {share} on {seeds}."
        return f"{text}."

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        """What a cohort may spend. Tries leave the final trials their money; final trials share what is left."""
        assert self.account is not None
        if not self.limited:
            return TimeLimit(math.inf)
        settings = self.host.settings
        if cohort.purpose == "try":
            expected = self._real_pace().tried(self._division.try_fraction)
            seconds = min(self._for_tries() / self._running, PATIENCE * expected * len(cohort.trials))
            return self.account.time_limit(seconds, cohort, context, settings)
        waiting = len(missing(self.host.store, self.finals, "final"))
        seconds = self.account.left() * len(cohort.trials) / max(1, waiting)
        return self.account.time_limit(seconds, cohort, context, settings, self.reserve)

    def facts(self, trial: Trial) -> SearchFacts | None:
        """How a final trial's setting was chosen, for its record."""
        decided = self.state.get("finals")
        if decided is None:
            return None
        return SearchFacts(
            tried=len(self._tried()),
            try_fraction=self._division.try_fraction,
            fraction=decided["fraction"],
            seeds=decided["seeds"],
            seeds_wanted=len(self.seeds),
            sentence=self._sentence(),
        )
