"""Anytime: one cell's money spent so that there is a good adapter early, and a better one after each further second.

    solved probe ─> strongest method ─────> its other settings, ────> seeds ─> the best again ─> test rows
    first adapter   one run where money     other methods; ended              on all rows, and
                    is short, several else  early where hopeless              their average

Every run is a search trial, judged on validation rows; the best adapter so far is the incumbent. In the end it is averaged with a
second run from the same start that has the validation rows too, and is evaluated on the test rows as it is. Each decision stands
in the state file with its reason before it is acted on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.backbones.loading import read_config
from dollartune.engines.base import (
    EVALUATION_MARGIN,
    EVALUATION_SECONDS,
    Cohort,
    EvaluationCost,
    TimeLimit,
)
from dollartune.methods.registry import reference
from dollartune.methods.rules import Facts
from dollartune.planner.trial_cost import BETWEEN_SECONDS, LEAST_STEPS, TrialCost
from dollartune.schedule.anytime_state import AnytimeState, Run, RunOutcome, Stage
from dollartune.schedule.cells import Cell, identity
from dollartune.schedule.first_settings import (
    Setting,
    settings_in_order,
    strongest,
    tokens_may_be_limited,
    variant_of,
)
from dollartune.schedule.scheduler import Account, CellScheduler, StateFile, time_limit
from dollartune.train.lr_schedule import DECAY_SHARE
from dollartune.trials.best import index_of_best
from dollartune.trials.record import SearchFacts, TrialRecord

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import SearchSettings, StudySettings
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

TEST_SHARE = 0.05
"""Of all the money, so much is kept for evaluating the test rows. What training leaves is added to it: fewer than all rows are
evaluated only where that is not enough."""
EARLY_SHARE = 0.1
"""Where nothing can be solved at once, the strongest method first gets at most so much of the money, to have an adapter."""
EARLY_STEPS = 0.25
"""And for no more than so much of its useful length: the first adapter and the seconds of a step are what that run is for."""
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
FEW_EPOCHS = 2.0
"""Where full tuning would get less than that, its upper layers alone get twice as many epochs: what lies below them is computed
once. In 15 s they reached 0.803 on SST-2, all layers 0.787 (MiniLM, 1,400 rows, 1.3 and 0.8 epochs); on AG News 0.832, 0.838."""
UPPER_COST = 0.55
"""A step of the upper half over one of all layers: half of the passes both ways, and the optimizer's part."""
UPPER_FILL = 0.6
"""Forwards of a row that what lies below them costs once: half of the layers, of validation rows (15 % of the data) too."""
LEAST_EPOCHS = 0.3
"""Below so many passes over the rows nothing was seen to come near the solved probe. Above it the run costs money that nothing
else could use, and is taken only where it is better."""
MORE_ROWS = 1.3
"""Times the rows that a probe was solved on, from which solving it again is worth the seconds: a third more rows are good for
half a point or a point where rows are as few as that."""
AVERAGE_GAIN = 0.005
"""By so much an average with a run on more rows is better than the first run's validation score: 0.002 to 0.007 were seen."""
WORTH_AVERAGING = 0.4
"""Of the best run's passes: with fewer of them over all rows a second run ends too far from the first one. On SST-2 two runs of
two epochs had 0.822 and 0.804 right, and their average 0.825; two of four epochs 0.826 and 0.815, and 0.833 (MiniLM)."""
SEVERAL_RUNS = 2.0
"""Times the useful length: with less money than that, one run uses all of it; with more, several settings are tried."""
NO_LIMIT_STEPS = 10**9
"""What is affordable without a budget: more than any useful length."""
WORTH_RUNNING = 0.6
"""Of the incumbent's useful length: a further setting that can get no more than that would lose for its length alone."""
STILL_BETTER = 0.9
"""A run whose best state came after this share of its steps was still getting better: it is tried longer first."""
PLAN_MARGIN = 1.08
"""Seconds that were seen, times this: another run's rows and a machine that others use too make it some hundredths slower."""
STEP_ROWS = 3.5
"""A row costs so many times as much in a training step as forwards alone: backwards is two forwards, the optimizer and looks at
validation rows are the rest. Only until a run of the method has been seen, and only to decide whether and what to train: how long
a run is, its time limit decides (`train.length`)."""
STEP_SECONDS_PER_NUMBER = 1.7e-9
"""Of a step, for each number that full tuning trains, beside what its rows cost: its gradient is zeroed, clipped and read by
AdamW with two moments. On two cores 0.04 s for MiniLM's 23 M, as much as the forward pass of 16 short rows."""
SLOWER = 2.0
"""A run may take so many times the seconds that were expected of its steps: before one of its method has been seen they are known
to a factor of two, and one that is cut there has had too few steps to be compared by."""
PRUNE_AFTER = 1 / 3
"""Of its steps: before that a run's warm-up and rate decide its loss more than its worth."""
PRUNE_RATIO = 1.15
"""A run is hopeless whose validation loss is that many times the incumbent's at an equal step: over some hundred rows losses of
equally good runs differ by less than a tenth."""
LEAST_FOR_BASELINES = 60.0
"""Seconds of a budget below which baselines are left out: tf-idf with its cross-validation takes 2 to 12 s, and a short run
can do without."""
ROWS_OF_ALL = 1000
"""What `scales: [all]` counts as before a run has told how many rows there are: the study file's default."""
SURELY_LEFT = 0.95
"""Of what is left now, so much is left when the evaluation gets its limit, on a busy machine too."""
LEAST_TEST_ROWS = 20
"""Fewer test rows say nothing: the standard error of an accuracy would be above 0.1."""


class AnytimeScheduler(CellScheduler):
    """All methods in one cell, for one sum, with an adapter at every moment after the first.

    Args:
        cell: where.
        spaces: what may be tried of each method.
        search: how.
        seconds_after: that are kept for what follows the study.
    """

    def __init__(
        self,
        settings: StudySettings,
        store: Store,
        ledger: Ledger,
        cell: Cell,
        spaces: Sequence[SearchSpace],
        search: SearchSettings,
        seconds_after: float = 0.0,
    ) -> None:
        super().__init__()
        self.seconds_after, self.store = seconds_after, store
        self.settings, self.ledger, self.cell, self.search = settings, ledger, cell, search
        self.spaces = {space.group: space for space in spaces if space.group in cell.templates}
        self.solved = [name for name, trial in cell.templates.items() if name in self.spaces and trial.solved]
        self.trained = [
            name for name, trial in cell.templates.items()
            if name in self.spaces and trial.trains and not trial.solved
        ]  # fmt: skip
        self._file = StateFile(
            store,
            ledger,
            identity(cell, list(self.spaces.values()), search, "anytime"),
            AnytimeState,
            AnytimeState.from_version_1,
        )
        self.state = self._file.read() or AnytimeState()
        self._trials: dict[Run, Trial] = {}

    # The contract

    @property
    def finals(self) -> list[Trial]:
        if self.state.final is not None:
            return [self._trial(run) for run in self.state.runs if self._name(run) == self.state.final]
        if self.state.over:  # nothing came about: what failed says why
            return [self._trial(run) for run in self.state.runs]
        return []

    @property
    def expected_finals(self) -> int:
        return len(self.finals) if self.state.over else 1

    @property
    def baselines_due(self) -> bool:
        """Once there is an adapter that knows the backbone, and where the money is not too short for them.

        Tokens alone come a second before the features do, and baselines between the two would make the user wait for these.
        """
        state = self.state
        if state.account is None or not state.outcomes or len(state.outcomes) < len(state.probe_tokens):
            return False
        return self._total_seconds() >= LEAST_FOR_BASELINES

    @property
    def prunes(self) -> bool:
        return any(run.stage in ("setting", "seed") for run in self._waiting())

    def to_measure(self) -> Sequence[Trial]:
        """The probe, where it may be that its features take too long."""
        if not self._probe_undecided():
            return ()
        return [self._trial_of(self._probe_setting(self._limits()[self.state.probe_tried]), self._probe_seed(), None)]

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        """Decides whether it is tokens alone first, and of how many rows how many tokens go through the backbone then."""
        state, limit = self.state, self._limits()[self.state.probe_tried]
        left = self.ledger.remaining(None) - self.seconds_after
        seconds = math.inf if cost is None else PROBE_MARGIN * cost.seconds_per_step
        share = min(1.0, PROBE_SHARE * left / seconds) if seconds > 0 else 1.0
        if limit is None and share == 1.0:
            state.probe_tokens = [None] if seconds <= QUICK_SHARE * left else [0, None]
        elif limit is not None and share >= LEAST_ROWS_SHARE:
            state.probe_tokens, state.probe_share = [0, limit], float(f"{share:.2g}")
            rows = "each row" if share == 1.0 else f"{state.probe_share:.0%} of the rows"
            self.note(f"{limit} tokens of {rows} go through the backbone: all would take too long.")
        elif limit is not None:
            state.probe_tokens = [0]
            self.note("the backbone is too slow for features in this budget: tokens are counted.")
        state.probe_tried += 1
        self._save()

    def _probe_undecided(self) -> bool:
        if self.state.probe_tokens or self.state.runs or not self.solved or math.isinf(self.ledger.remaining(None)):
            return False
        return tokens_may_be_limited(self.spaces[self.solved[0]].variants[0])

    def _limits(self) -> tuple[int | None, ...]:
        return (None, FIRST_TOKENS)

    def _probe_setting(self, tokens: int | None) -> Setting:
        return Setting(self.solved[0], tokens=tokens, rows_share=self.state.probe_share if tokens else 1.0)

    def _probe_seed(self) -> int:
        return self._seeds(self.solved[0])[0]

    def begin(self, part: float) -> None:
        if self.state.account is None:
            self.state.account = Account.take(self.ledger, None, part)
            self._save()

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        while not self.state.over:
            if waiting := self._waiting():
                seconds = math.inf if waiting[0].limit_seconds is None else waiting[0].limit_seconds
                return [Cohort((self._trial(waiting[0]),), "search", seconds, waiting[0].why)]
            if self.state.final is None and (run := self._next_run() or self._average()) is not None:
                self.note(run.why)
                self.state.runs.append(run)
                self._save()
                continue
            if self.state.final is None:
                self._choose()
            if rows := self._rows_to_evaluate():
                trial = self.finals[0]
                return [Cohort((trial,), "evaluate", why="the adapter that is handed over", test_rows=rows)]
            self.state.over = True
            self._save()
            self.note(self._ending())
        return ()

    def done(self, trial: Trial, record: TrialRecord) -> None:
        outcome = RunOutcome.of(record)
        if self.state.final == trial.identifier and not outcome.evaluated:
            self.state.refused = True
            self.note(f"the test rows are not evaluated: {outcome.error}")
        self.state.outcomes[trial.identifier] = outcome
        self._save()

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """A run may spend what is left, except what the end needs; the first adapter and the end are not held back."""
        self.state.test_rows = len(costs.splits.test)
        self.state.validation_rows = min(len(costs.splits.validation), self.settings.training.validation_rows)
        self.state.seconds_per_test_row = costs.seconds_per_row or 0.0
        self.state.seconds_per_row = self.state.seconds_per_row or costs.seconds_per_validation_row
        self._save()
        seconds = self._account.left() - self.seconds_after
        if cohort.purpose == "search" and (not cohort.trials[0].solved or self._incumbent() is not None):
            seconds -= self._test_seconds()
        return time_limit(seconds, cohort, costs, self.settings, None)

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        run = next((run for run in self._waiting() if self._name(run) == trial.identifier), None)
        best = self._incumbent()
        if run is None or best is None or run.steps is None:
            return False
        # Once the rate falls little is left to be saved, and what the decay and its average bring has not been seen.
        if not PRUNE_AFTER * run.steps <= step <= (1 - DECAY_SHARE) * run.steps:
            return False
        expected = at_step(self.state.outcomes[self._name(best)].curve, step)
        return expected is not None and loss > PRUNE_RATIO * expected

    def facts(self, trial: Trial) -> SearchFacts | None:
        return SearchFacts(
            tried=len({(run.setting, run.steps) for run in self.state.runs}),
            seeds=len({run.seed for run in self.state.runs}),
            seeds_wanted=1,
            sentence=self.state.ending or None,
        )

    # What runs next

    def _next_run(self) -> Run | None:
        """The run that is expected to gain most; None where nothing is worth its seconds any more, with the reason kept."""
        done = self.state.runs
        if self.solved and (probe := self._next_probe()) is not None:
            return probe
        order = self._order()
        if not order:
            return self._end("there is no method that could be trained further")
        if not done:
            return self._early(order[0])
        return self._further() if self._trained_runs() else self._main(Setting(self._first_trained(order)))

    def _first_trained(self, order: Sequence[str]) -> str:
        """The strongest method, or the upper layers alone where all of them would get next to no training."""
        upper = reference("upper_layers").name
        epochs = self._steps_in(order[0], self._training_seconds()) / self._epoch_steps()
        whole = order[0] == reference("everything").name
        return upper if whole and upper in order and epochs < FEW_EPOCHS else order[0]

    def _next_probe(self) -> Run | None:
        """What can be solved at once comes first: the quickest, then what the backbone has to say."""
        run = [one.setting.tokens for one in self.state.runs if one.stage == "probe"]
        wanted = self.state.probe_tokens or [None]
        if len(run) >= len(wanted):
            return None
        tokens = wanted[len(run)]
        setting = self._probe_setting(tokens)
        why = f"{self._words(setting)} first: it is solved at once on features that are computed once."
        if tokens == 0:
            why = f"{self._words(setting)} first: it needs the backbone for nothing, and is solved in some seconds."
        elif run:
            why = f"{self._words(setting)}: the same with what the backbone makes of the rows."
        seconds = None if math.isinf(self._total_seconds()) or not run else self._account.left() - self.seconds_after
        return Run("probe", setting, self._probe_seed(), None, why, seconds)

    def _larger_probe(self, seconds: float) -> Run | None:
        """Features of more rows, where only a share of them was solved on for fear of the time, and it went quicker than that."""
        last = next(run for run in reversed(self.state.runs) if run.stage == "probe")
        outcome = self.state.outcomes[self._name(last)]
        if last.setting.rows_share == 1.0 or outcome.training_seconds <= 0:
            return None
        affordable = last.setting.rows_share * seconds / (PLAN_MARGIN * outcome.training_seconds)
        share = min(1.0, float(f"{affordable:.2g}"))
        if share < MORE_ROWS * last.setting.rows_share:
            return None
        setting = replace(last.setting, rows_share=share)
        why = f"{self._words(setting)}: features came quicker than expected, and nothing else can use the time."
        return Run("probe", setting, last.seed, None, why, seconds)

    def _early(self, method: str) -> Run | None:
        seconds = EARLY_SHARE * self._total_seconds()
        if math.isinf(seconds):
            return self._main(Setting(method))
        steps = max(LEAST_STEPS, round(EARLY_STEPS * self._useful_steps()))
        why = f"{self._words(Setting(method))} for {steps} steps, to have an adapter early."
        return Run("early", Setting(method), self._seeds(method)[0], steps, why, seconds)

    def _main(self, setting: Setting, stage: Stage = "main") -> Run | None:
        """The strongest method's first run: all that the money pays for, or its useful length where it pays for several."""
        seconds, method = self._training_seconds(), setting.method
        affordable, useful, epoch = self._steps_in(method, seconds), self._useful_steps(), self._epoch_steps()
        best, fit = self._incumbent(), f"would fit in {max(0.0, seconds):.0f} s"
        if best is not None and best.stage == "probe":
            if affordable < LEAST_EPOCHS * epoch:
                if (larger := self._larger_probe(seconds)) is not None:
                    return larger
                return self._end(
                    f"{self._words(setting)}: {affordable / epoch:.1f} epochs {fit}, and below {LEAST_EPOCHS:g} none was seen to "
                    "pass a solved probe"
                )
        elif affordable < LEAST_STEPS:
            return self._end(f"{self._words(setting)}: {affordable} steps {fit}, and a run has {LEAST_STEPS} at least")
        # A first run that turns out quicker than expected leaves the rest to the average; one that is slower leaves its part.
        averages = self.settings.training.train_on_validation
        one = affordable < (1 if averages else SEVERAL_RUNS) * useful and not math.isinf(seconds)
        timed = self._seconds_per_step(method) > 0
        steps = affordable if one else useful
        why = (
            f"{self._words(setting)}: "
            # Where every earlier run failed, no row was timed.
            + (
                f"about {affordable / epoch:.1f} epochs fit in {seconds:.0f} s"
                if timed
                else "an epoch was not timed yet"
            )
            + f"; on {self._rows():,} rows {useful / epoch:.1f} are useful. "
            + ("One run uses the time." if one else "Others come after it.")
        )
        seed = self._seeds(method)[0]
        if one:
            return Run(stage, setting, seed, steps, why, length="money")
        run = self._run(stage, setting, seed, steps, why)
        if averages and run.limit_seconds is not None:
            return replace(run, limit_seconds=min(run.limit_seconds, seconds / (1 + WORTH_AVERAGING)))
        return run

    def _further(self) -> Run | None:
        """Longer where the best run was still getting better; else the next setting; else another seed."""
        best = self._best_trained()
        if best is None:  # what was run has failed
            untried = self._untried()
            return self._main(untried[0], "setting") if untried else self._end("every method failed")
        outcome = self.state.outcomes[self._name(best)]
        length = max(LEAST_STEPS, round(outcome.best_step * 1.1))
        affordable = self._steps_in(best.setting.method, self._searching_seconds())
        tried_longer = any(run.stage == "longer" and run.setting == best.setting for run in self.state.runs)
        worth = 2 * outcome.steps >= LEAST_EPOCHS * self._epoch_steps()
        if (
            outcome.last_gain >= STILL_BETTER
            and worth
            and not tried_longer
            and affordable >= SEVERAL_RUNS * outcome.steps * 0.8
        ):
            steps = min(affordable, 2 * outcome.steps)
            why = f"{self._label(best)} was still getting better at its end: {steps} steps instead of {outcome.steps}."
            return self._run("longer", best.setting, best.seed, steps, why)
        untried = self._untried()
        for setting in untried:  # where the next one is too dear, a cheaper one may not be
            if (run := self._against(best, setting, length)) is not None:
                return run
        if untried:
            return self._end(self._too_little(*self._needed(untried[0], length)))
        used = [run.seed for run in self.state.runs if run.setting == best.setting]
        fresh = next((seed for seed in self._seeds(best.setting.method) if seed not in used), None)
        if fresh is None:
            return self._end("all settings and seeds have been tried")
        if affordable < WORTH_RUNNING * length:
            return self._end(self._too_little(length, best.setting.method))
        steps = min(affordable, outcome.steps)
        why = f"{self._label(best)} again with seed {fresh}, with what no other setting needs."
        return self._run("seed", best.setting, fresh, steps, why)

    def _run(self, stage: Stage, setting: Setting, seed: int, steps: int, why: str) -> Run:
        """A run of so many steps, validated at growing ones, that ends decayed whatever the machine's speed is: fewer steps where
        they take far longer than expected, so that something is left for others."""
        if math.isinf(self._total_seconds()):
            return Run(stage, setting, seed, steps, why, length="money")
        seconds = PLAN_MARGIN * steps * self._seconds_per_step(setting.method) + EVALUATION_SECONDS
        if self._seen(setting.method) is None:  # of a run that was seen they are in its seconds per step
            seconds += EVALUATION_MARGIN * self.state.validation_rows * self.state.seconds_per_row
        seconds = min(SLOWER * seconds, self._searching_seconds())
        return Run(stage, setting, seed, steps, why, seconds, length="at_most")

    def _last_run(self, setting: Setting, stage: Stage, seed: int, why: str) -> Run:
        """With all that is left but for the average: no other could follow it."""
        seconds = self._searching_seconds()
        limit = seconds if seconds < self._training_seconds() else None
        return Run(stage, setting, seed, self._steps_in(setting.method, seconds), why, limit, length="money")

    def _average(self) -> Run | None:
        """The best trained run once more from the same start, with the validation rows among its own, to be averaged with it:
        they have nothing left to choose. Solved methods take them in their own run (`train.solve.solve_on_all`)."""
        best = self._to_average()
        if best is None:
            return None
        rows, steps = self._rows() + self.state.validation_rows, self._affordable_average(best)
        why = f"{self._label(best)} again on all {rows:,} rows, {steps} steps, to be averaged with the first: nothing else fits."
        return Run("average", best.setting, best.seed, steps, why, length="at_most", averaged_with=self._name(best))

    def _affordable_average(self, best: Run) -> int:
        """Steps of its average that the money pays for, and are useful."""
        return min(self._average_steps(best), self._steps_in(best.setting.method, self._training_seconds()))

    def _to_average(self) -> Run | None:
        """The run whose average with another would be handed over; None where there is none, or too little money for it."""
        # once: one that failed would fail again
        if not self.settings.training.train_on_validation or any(run.averaged_with for run in self.state.runs):
            return None
        best = self._best([run for run in self._trained_runs() if self._kept(run)])
        if best is None or self._affordable_average(best) < max(
            LEAST_STEPS, WORTH_AVERAGING * self._average_steps(best)
        ):
            return None
        highest = self._score(self._incumbent() or best) or 0.0
        return best if (self._score(best) or 0.0) >= highest - AVERAGE_GAIN else None

    def _kept(self, run: Run) -> bool:
        """Whether its adapter is there: of equally good runs the first one's is."""
        folder = self.store.folder(self._name(run)) / "adapter"
        return folder.is_dir() or self.settings.keep_adapters == "none"

    def _averaged(self) -> Run | None:
        """The average, if it has come about."""
        return next((run for run in self.state.runs if run.averaged_with and self._score(run) is not None), None)

    def _average_steps(self, best: Run) -> int:
        """As many passes over all rows as the best run has made over its own."""
        return round(
            self.state.outcomes[self._name(best)].steps * (1 + self.state.validation_rows / max(1, self._rows()))
        )

    def _against(self, best: Run, setting: Setting, length: int) -> Run | None:
        """A run of another setting; None where the money pays for too little of it.

        Args:
            length: steps that the best run needed.
        """
        needed, _, known = self._needed(setting, length)
        steps = self._steps_in(setting.method, self._searching_seconds())
        if steps < max(WORTH_RUNNING * needed, LEAST_EPOCHS * self._epoch_steps()):
            return None
        wanted = max(needed, self.state.outcomes[self._name(best)].steps) if known else needed
        if steps < wanted + WORTH_RUNNING * needed:
            why = f"{self._words(setting)} with all that is left, {steps} steps, against {self._score_words(best)}."
            return self._last_run(setting, "setting", best.seed, why)
        why = f"{self._words(setting)} for {wanted} steps, against {self._score_words(best)}."
        return self._run("setting", setting, best.seed, wanted, why)

    def _needed(self, setting: Setting, length: int) -> tuple[int, str, bool]:
        """Steps that a setting needs, its method, and whether a run of the method has shown it: how long the best one needed says
        something of its own method alone; others may learn more slowly, and end higher."""
        known = any(run.setting.method == setting.method for run in self._trained_runs())
        return (length if known else self._useful_steps()), setting.method, known

    def _untried(self) -> list[Setting]:
        """In the order of prior evidence."""
        tried = {run.setting for run in self.state.runs if run.stage != "early"}
        order = self._order()
        waiting = settings_in_order(self.spaces, order) if order else []
        return [one for one in waiting if one not in tried and self._may_try(one.method)]

    def _may_try(self, method: str) -> bool:
        """Whether the study allows another setting of it."""
        tried = {run.setting for run in self.state.runs if run.setting.method == method}
        return self.search.trials is None or len(tried) < self.search.trials

    def _order(self) -> list[str]:
        return strongest(self.trained, self._parameters())

    def _end(self, reason: str) -> Run | None:
        """No run, and the reason is kept."""
        if not self.state.ending:
            self.state.ending = reason
            self._save()
        return None

    def _too_little(self, length: int, method: str, known: bool = True) -> str:
        """Why no further run is begun.

        Args:
            known: whether a run has shown that so many steps are needed; else the rows can use them.
        """
        seconds = self._searching_seconds()
        steps, needed = self._steps_in(method, seconds), "were needed so far" if known else "are useful on these rows"
        if not steps:
            beside = "" if self._to_average() is None else " beside an average"
            return f"what is left{beside} pays for no step of {method}, and {length} {needed}"
        many = f"{steps} step{'s' if steps > 1 else ''}"
        return f"the {numbers.seconds(seconds)} left pay for {many} of {method}, and {length} {needed}"

    # The end

    def _choose(self) -> None:
        best = self._averaged() or self._incumbent()
        if best is None:
            return
        left = self._account.left() - self.seconds_after - self._test_seconds()
        rest = f"; {numbers.seconds(left)} are given back" if 0 < left < math.inf else ""
        self.state.ending = f"{self.state.ending}{rest}."
        self.state.final = self._name(best)
        self._save()

    def _rows_to_evaluate(self) -> int:
        """Test rows on which the adapter is evaluated now; 0 where that is done, or does not pay."""
        if self.state.final is None or self.state.refused or self.state.outcomes[self.state.final].evaluated:
            return 0
        if self.state.evaluated_rows is None:
            # its validation rows were evaluated a moment ago, on the machine as it is now
            each = max(self.state.seconds_per_test_row, self.state.outcomes[self.state.final].seconds_per_row)
            # less than is left: the limit is asked a moment later, and would refuse what no longer fits
            left = SURELY_LEFT * (self._account.left() - self.seconds_after) - EVALUATION_SECONDS - BETWEEN_SECONDS
            affordable = left / (EVALUATION_MARGIN * each) if each > 0 else math.inf
            rows = int(min(self.state.test_rows, max(0.0, affordable)))
            self.state.evaluated_rows = rows if rows >= min(LEAST_TEST_ROWS, self.state.test_rows) else 0
            if rows < self.state.test_rows:
                self.note(
                    f"{self.state.evaluated_rows} of {self.state.test_rows} test rows are evaluated: all would take too long."
                )
            self._save()
        return self.state.evaluated_rows

    def _capped_rows(self) -> int:
        each, total = self.state.seconds_per_test_row, self._total_seconds()
        if each <= 0 or math.isinf(total):
            return self.state.test_rows
        return min(self.state.test_rows, int(TEST_SHARE * total / each))

    def _ending(self) -> str:
        where, best = self.cell.name(), self._averaged() or self._incumbent()
        if best is None:
            return f"{where}: no adapter came about."
        tried = len(self.state.runs)
        return f"{where}: {self._score_words(best)} is the best of {tried} run{'s' if tried > 1 else ''}. {self.state.ending}"

    # Money

    @property
    def _account(self) -> Account:
        assert self.state.account is not None, "begin() comes first"
        return Account(self.ledger, None, self.state.account)

    def _total_seconds(self) -> float:
        """All of the budget, what was spent before this cell began included."""
        assert self.state.account is not None
        return self.state.account.seconds + self.state.account.began

    def _test_seconds(self) -> float:
        """What evaluating the adapter in the end takes."""
        return EVALUATION_MARGIN * self._capped_rows() * self.state.seconds_per_test_row + EVALUATION_SECONDS

    def _training_seconds(self) -> float:
        """What may be trained with now."""
        return self._account.left() - self.seconds_after - self._test_seconds() - BETWEEN_SECONDS

    def _searching_seconds(self) -> float:
        """What may be tried with: without what the best run takes a second time, to be averaged (`_average`)."""
        seconds, best = self._training_seconds(), self._to_average()
        if best is None:
            return seconds
        again = (
            PLAN_MARGIN * self._average_steps(best) * self._seconds_per_step(best.setting.method) + EVALUATION_SECONDS
        )
        return seconds - again

    def _steps_in(self, method: str, seconds: float) -> int:
        """Optimizer steps of a method that fit, validation on the way and evaluation after it included."""
        if math.isinf(seconds):
            return NO_LIMIT_STEPS
        seen, row = self._seen(method), self.state.seconds_per_row
        if seen is None:  # of a run that was seen they are in its seconds per step
            seconds -= EVALUATION_MARGIN * self.state.validation_rows * row
            seconds -= UPPER_FILL * self._rows() * row if method == reference("upper_layers").name else 0.0
        each = PLAN_MARGIN * self._seconds_per_step(method)
        return max(0, int((seconds - EVALUATION_SECONDS) / max(1e-9, each)))

    def _seconds_per_step(self, method: str) -> float:
        """With looks and the evaluation after it: as seen in the latest run of the method, else by what a row takes forwards."""
        if (seen := self._seen(method)) is not None:
            return seen.seconds / seen.steps
        share = UPPER_COST if method == reference("upper_layers").name else 1.0
        rows = STEP_ROWS * self.settings.training.batch_size * self.state.seconds_per_row
        whole = method in (reference("everything").name, reference("upper_layers").name)
        return share * (rows + (STEP_SECONDS_PER_NUMBER * self._parameters() if whole else 0.0))

    def _seen(self, method: str) -> RunOutcome | None:
        """The latest run of a method."""
        for run in reversed(self.state.runs):
            outcome = self.state.outcomes.get(self._name(run))
            if run.setting.method == method and outcome is not None and outcome.steps >= LEAST_STEPS:
                return outcome
        return None

    # What is known

    def _waiting(self) -> list[Run]:
        return [run for run in self.state.runs if self._name(run) not in self.state.outcomes]

    def _trained_runs(self) -> list[Run]:
        return [run for run in self.state.runs if run.stage not in ("probe", "early", "average")]

    def _incumbent(self) -> Run | None:
        """The best run so far, by its validation score; of equal ones the earlier."""
        return self._best(self.state.runs)

    def _best_trained(self) -> Run | None:
        return self._best([run for run in self.state.runs if run.steps is not None])

    def _best(self, runs: Sequence[Run]) -> Run | None:
        best = index_of_best([self._score(run) for run in runs])
        return None if best is None else runs[best]

    def _score(self, run: Run) -> float | None:
        outcome = self.state.outcomes.get(self._name(run))
        return None if outcome is None else outcome.score

    def _rows(self) -> int:
        known = [outcome.rows for outcome in self.state.outcomes.values() if outcome.rows]
        if known:
            return known[0]
        return next(iter(self.cell.templates.values())).scale or ROWS_OF_ALL

    def _facts(self) -> Facts:
        """What the rules for first settings read.

        Of the rows only what is known before anything has run, so that a setting is the same trial whenever it is asked for;
        all rows count as a thousand.
        """
        return Facts(self._width, next(iter(self.cell.templates.values())).scale or ROWS_OF_ALL)

    def _parameters(self) -> int:
        return max((outcome.parameters for outcome in self.state.outcomes.values()), default=0)

    def _epoch_steps(self) -> int:
        return math.ceil(self._rows() / self.settings.training.batch_size)

    def _useful_steps(self) -> int:
        """What a training of so many rows can use, as one without a budget would have."""
        return max(LEAST_STEPS, self.settings.training.steps_for(self._rows()))

    # Trials and words

    def _seeds(self, method: str) -> tuple[int, ...]:
        return self.cell.seeds[method]

    def _trial(self, run: Run) -> Trial:
        if run not in self._trials:
            trial = self._trial_of(run.setting, run.seed, run.steps)
            if run.averaged_with is not None:
                trial = replace(trial, averaged_with=run.averaged_with, more=", average of two")
            self._trials[run] = replace(trial, length=run.length)
        return self._trials[run]

    def _trial_of(self, setting: Setting, seed: int, steps: int | None) -> Trial:
        variant = variant_of(setting, self.spaces[setting.method], self._facts())
        trial = self.cell.trial(variant, seed, 1.0)
        return trial if steps is None else replace(trial, steps=steps)

    def _name(self, run: Run) -> str:
        return self._trial(run).identifier

    @cached_property
    def _width(self) -> int:
        """Of the backbone's states; rates follow it."""
        backbone = self.settings.backbones[next(iter(self.cell.templates.values())).backbone_index]
        config = read_config(backbone.name, backbone.trust_remote_code)
        width = getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0)
        return int(width or 0)

    def _label(self, run: Run) -> str:
        return self._trial(run).variant.label

    def _words(self, setting: Setting) -> str:
        return variant_of(setting, self.spaces[setting.method], self._facts()).label

    def _score_words(self, run: Run) -> str:
        outcome = self.state.outcomes[self._name(run)]
        return f"{self._label(run)} with {outcome.score:.3f} ± {outcome.standard_error:.3f} on the validation rows"

    def _save(self) -> None:
        self._file.write(self.state)


def at_step(curve: Sequence[tuple[int, float]], step: int) -> float | None:
    """The loss of a curve at a step, between two points in a straight line; None outside of it."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        if before <= step <= after:
            return low + (high - low) * (step - before) / max(1, after - before)
    return next((loss for at, loss in curve if at == step), None)
