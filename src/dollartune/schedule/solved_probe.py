"""The first adapter: a head solved at once on the backbone's features, of as much of the rows as the money lets pass through it.

a part of the rows, where an adapter of all of them would come late; then all, whose features are added to those of the part:

whole rows ─ too long ─> first tokens of each ─ too long ─> first tokens of a share of the rows ─ too few ─> tokens are counted
pictures ─── too long ─> a share of them, however few: there is nothing else to begin with
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.engines.base import scored_beside
from dollartune.schedule.anytime_state import AnytimeState, Run
from dollartune.schedule.first_settings import Setting, rows_may_be_limited, tokens_may_be_limited
from dollartune.schedule.run_cost import PLAN_MARGIN

if TYPE_CHECKING:
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.schedule.run_cost import RunCost
    from dollartune.schedule.run_history import RunHistory
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.trial import Trial, Variant

FIRST_TOKENS = 128
"""Of each row, where passing whole rows through the backbone would take too long: most of what a text is about stands early, and
whatever is counted (tokens, pairs) is counted in all of it."""
LEAST_ROWS_SHARE = 0.15
"""Where that is still too long, features of a share of the rows are solved on. 200 of 1,400 rows so gave 0.716, 0.860 and 0.737
on SST-2, AG News and PhraseBank (MiniLM), tokens of all rows alone 0.720, 0.823 and 0.746: below it, tokens alone are as good."""
PROBE_SHARE = 0.7
"""Of the money that is left, features may take so much. Training for an epoch costs 3.5 times as much as they do: where they take
more than a quarter, nothing else can be done with the money anyway."""
QUICK_SHARE = 0.03
"""Features that take more than this part of what is left come second: tokens alone give the first adapter in a second or two, and
then there is one whatever becomes of the machine's speed."""
PROBE_MARGIN = 1.3
"""Features take so many times what was measured on 48 rows, validation rows (15 % of the data) included."""
TOKENS_SHARE = 0.5
"""Of the money that is left, solving on tokens alone may take so much, by what it is estimated to take: with 150 classes or ten
thousand rows that is not the second or two that it takes otherwise, and it comes first for being quick."""
LEAST_PICTURES_SHARE = 0.01
"""Of pictures, which have no words to count, at least so many: some of each class, mostly."""
PART_SHARE = 0.1
"""Of the money that is left, after so much there should be an adapter that knows the backbone: where features of all rows take
longer, a part of the rows is solved on first. Its validation rows are the same, so that the two can be compared."""
LATE_SECONDS = 10.0
"""Waiting less than that for all rows is not late, whatever the budget: a run of its own takes about a second beside features."""
LARGEST_PART = 0.5
"""Of the rows that are solved on in the end: a larger part comes hardly earlier."""
LEAST_TEXTS_PART = 2 * LEAST_ROWS_SHARE
"""Of texts, at whose share of `LEAST_ROWS_SHARE` the tokens alone, which are there by then, are as good."""
LEAST_PICTURES_PART = 0.05
"""Of pictures the part is at least so large, where their validation rows alone take a tenth of the money."""
MORE_ROWS = 1.3
"""Times the rows that a probe was solved on, from which solving it again is worth the seconds: a third more rows are good for
half a point or a point where rows are as few as that."""


class SolvedProbe:
    """What is solved first, and on how much of the rows; that is decided once, from measured seconds, and kept in the state.

    Args:
        methods: those that are solved; the first one is used.
    """

    def __init__(
        self,
        methods: Sequence[str],
        spaces: Mapping[str, SearchSpace],
        state: AnytimeState,
        history: RunHistory,
        cost: RunCost,
    ) -> None:
        self.methods, self.spaces, self.state, self.history, self.cost = methods, spaces, state, history, cost

    def to_measure(self, left: float) -> Sequence[Trial]:
        """The probe, where it may be that its features take too long.

        Args:
            left: seconds of the budget.
        """
        if self.state.runs or not self.methods or math.isinf(left):
            return ()
        if self.state.probe_tokens:
            undecided = self.state.probe_tokens[0] == 0 and self.state.tokens_share is None
            return [self.history.trial_of(self._setting(0), self._seed, None)] if undecided else ()
        if not (rows_may_be_limited(self._variant) or tokens_may_be_limited(self._variant)):
            return ()
        return [self.history.trial_of(self._setting(self._limit), self._seed, None)]

    def measured(self, left: float, cost: TrialCost | None) -> str:
        """Decides whether it is tokens alone first, and of how many rows how many tokens go through the backbone then.

        Args:
            left: seconds that it may be taken from.
            cost: of what `to_measure` asked for; None where it could not be measured.

        Returns:
            What the user should know of it.
        """
        state, limit = self.state, self._limit
        if state.probe_tokens:
            state.tokens_share = share = self._affordable_tokens(left, cost)
            if share == 1.0:
                return ""
            return f"tokens of {numbers.percent(share)} of the rows are counted: solving on all would take too long."
        state.probe_tried += 1
        seconds = math.inf if cost is None else PROBE_MARGIN * cost.seconds_per_step
        share = min(1.0, PROBE_SHARE * left / seconds) if seconds > 0 else 1.0
        if not tokens_may_be_limited(self._variant):
            state.probe_tokens = [None]
            # Where nothing could be measured nothing is known, and it is all that there is to begin with.
            if cost is None:
                return ""
            note = "" if share == 1.0 else self._of_a_share("", max(share, LEAST_PICTURES_SHARE), cost)
            self._begin_with_a_part(left, cost, LEAST_PICTURES_PART, least_always=True)
            return note
        if limit is None:
            if share == 1.0:
                state.probe_tokens = [None] if seconds <= QUICK_SHARE * left else [0, None]
                if cost is not None:
                    self._begin_with_a_part(left, cost, LEAST_TEXTS_PART)
            return ""
        if cost is None or share < LEAST_ROWS_SHARE:
            state.probe_tokens = [0]
            return "the backbone is too slow for features in this budget: tokens are counted."
        state.probe_tokens = [0, limit]
        note = self._of_a_share(f"{limit} tokens of ", share, cost)
        self._begin_with_a_part(left, cost, LEAST_TEXTS_PART)
        return note

    def _begin_with_a_part(self, left: float, cost: TrialCost, least: float, least_always: bool = False) -> None:
        """Solves on a part of the rows before all of them, where these would come late.

        Args:
            left: seconds that all may be taken from.
            least: share of the rows below which a part says too little.
            least_always: whether that share is solved on even where it takes longer than it should.
        """
        state, seconds = self.state, PROBE_MARGIN * cost.seconds_per_step
        if state.probe_share * seconds <= LATE_SECONDS:
            return
        scored = state.validation_rows / cost.validation_rows if state.validation_rows and cost.validation_rows else 1.0
        part = (PART_SHARE * left - scored * cost.try_seconds) / seconds
        part = max(part, least) if least_always else part
        if least <= part <= LARGEST_PART * state.probe_share:
            state.part_share = float(f"{part:.2g}")
            state.probe_tokens.append(state.probe_tokens[-1])

    def _affordable_tokens(self, left: float, cost: TrialCost | None) -> float:
        """Share of the rows that are solved on where tokens alone are counted; the solution's seconds are all that it takes."""
        if cost is None or cost.seconds_per_step <= 0:
            return 1.0
        return float(f"{min(1.0, TOKENS_SHARE * left / cost.seconds_per_step):.2g}")

    def _of_a_share(self, tokens: str, share: float, cost: TrialCost) -> str:
        """Keeps the share of the rows, and with it that of the validation rows; what the user should know of it."""
        # Two digits: it stands in the trial's settings and is read by people.
        self.state.probe_share = float(f"{share:.2g}")
        self.state.validation_rows = scored_beside(share, cost.validation_rows)
        rows = "each row" if share == 1.0 else f"{numbers.percent(self.state.probe_share)} of the rows"
        return f"{tokens}{rows} go through the backbone: all would take too long."

    def next_run(self) -> Run | None:
        """The quickest first, then what the backbone has to say; None once all have run."""
        run = [one.setting.tokens for one in self.state.runs if one.stage == "probe"]
        wanted = self.state.probe_tokens or [None]
        if len(run) >= len(wanted):
            return None
        tokens = wanted[len(run)]
        # the last but one where there is a part: tokens alone come before it, all rows after it
        part = self.state.part_share is not None and len(run) == len(wanted) - 2
        setting = self._setting(tokens, part)
        why = f"{self.history.words(setting)} first: it is fitted at once, on features that the backbone computes once."
        if tokens == 0:
            why = f"{self.history.words(setting)} first: it is fitted without the backbone, in seconds."
        elif part:
            why = f"{self.history.words(setting)}: of a part of the rows, as features of all would come late."
        elif run:
            why = f"{self.history.words(setting)}: now with the backbone's features of the rows."
        # The first adapter is not held back: without it there is nothing to hand over.
        seconds = None if math.isinf(self.cost.total_seconds()) or not run else self.cost.left()
        return Run("probe", setting, self._seed, None, why, seconds)

    def larger_run(self, seconds: float) -> Run | None:
        """Features of more rows beside those that are there, where only a share of them was solved on: for fear of the time, and
        it went quicker than that, or as the time ended, and less was needed afterwards."""
        last = next(run for run in reversed(self.state.runs) if run.stage == "probe")
        outcome = self.history.outcome(last)
        if outcome.rows_share == 1.0 or outcome.training_seconds <= 0:
            return None
        alike = [run for run in self.state.runs if run.stage == "probe" and run.setting.tokens == last.setting.tokens]
        there = [
            self.history.outcome(run).rows_share for run in alike if run != last and self.history.score(run) is not None
        ]
        computed = max(0.0, outcome.rows_share - max(there, default=0.0))  # features of earlier ones were there
        affordable = computed * seconds / (PLAN_MARGIN * outcome.training_seconds)
        share = min(1.0, float(f"{outcome.rows_share + affordable:.2g}"))
        setting = replace(last.setting, rows_share=share)
        # What was tried has its record: of a setting whose time ended no second one can come.
        if share < MORE_ROWS * outcome.rows_share or any(run.setting == setting for run in self.state.runs):
            return None
        why = f"{self.history.words(setting)}: the time pays for features of more rows, and nothing else can use it."
        return Run("probe", setting, last.seed, None, why, seconds)

    def scored_before(self, trial: str) -> bool:
        """Whether the backbone has seen the validation rows of a trial of more rows: an earlier probe was scored on them."""
        probes = [run for run in self.state.runs if run.stage == "probe"]
        seen = {run.setting.tokens for run in probes if self.history.score(run) is not None}
        return any(run.setting.tokens in seen for run in probes if self.history.name(run) == trial)

    @property
    def _variant(self) -> Variant:
        return self.spaces[self.methods[0]].variants[0]

    @property
    def _limit(self) -> int | None:
        """Tokens of a row that are asked about now: all, then the first ones."""
        return None if self.state.probe_tried == 0 else FIRST_TOKENS

    @property
    def _seed(self) -> int:
        return self.history.seeds(self.methods[0])[0]

    def _setting(self, tokens: int | None, part: bool = False) -> Setting:
        share = self.state.part_share if part else self.state.tokens_share if tokens == 0 else self.state.probe_share
        return Setting(self.methods[0], tokens=tokens, rows_share=share or 1.0)
