"""Anytime: one cell's money spent so that there is a good adapter early, and a better one after each further second.

    solved probe ─> strongest method ─────> its other settings, ────> seeds ─> the best again ─> test rows
    first adapter   one run where money     other methods; ended              on all rows, and
                    is short, several else  early where hopeless;             their average
                                            where many are paid for,
                                            in short runs first (`rungs`)

Every run is a search trial, judged on validation rows; the best adapter so far is the incumbent. In the end it is averaged with a
second run from the same start that has the validation rows too, and is evaluated on the test rows as it is. Each decision stands
in the state file with its reason before it is acted on.

What was run is asked of `run_history`, what a run costs of `run_cost`, what is solved first of `solved_probe`, and what the end
is averaged with of `averaging`. The sentences that go with decisions are written in `anytime_words`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune.engines.base import (
    EVALUATION_MARGIN,
    EVALUATION_SECONDS,
    LEAST_TEST_ROWS,
    Cohort,
    EvaluationCost,
    TimeLimit,
    evaluation_seconds,
)
from dollartune.errors import UserError
from dollartune.methods.registry import reference
from dollartune.planner.trial_cost import BETWEEN_SECONDS, LEAST_STEPS, TrialCost
from dollartune.schedule.anytime_state import AnytimeState, Run, RunOutcome, Stage
from dollartune.schedule.anytime_words import AnytimeWords, unspent
from dollartune.schedule.averaging import WORTH_AVERAGING, Averaging
from dollartune.schedule.cells import Cell, identity
from dollartune.schedule.first_settings import (
    Setting,
    settings_in_order,
    strongest,
)
from dollartune.schedule.run_cost import RunCost
from dollartune.schedule.run_history import RunHistory
from dollartune.schedule.rungs import LEAST_SETTINGS, MANY_RUNS, Rungs, RungsState, rungs_of
from dollartune.schedule.scheduler import Account, CellScheduler, StateFile, time_limit
from dollartune.schedule.settled import SETTLED, stays_best
from dollartune.schedule.solved_probe import SolvedProbe
from dollartune.train.lr_schedule import DECAY_SHARE
from dollartune.trials.record import SearchFacts, TrialRecord

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import SearchSettings, StudySettings
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial

EARLY_SHARE = 0.1
"""Where nothing can be solved at once, the strongest method first gets at most so much of the money, to have an adapter."""
EARLY_STEPS = 0.25
"""And for no more than so much of its useful length, nor for more than a race's first rung, which that run then is one of: the
first adapter and the seconds of a step are what it is for."""
FEW_EPOCHS = 2.0
"""Where full tuning would get less than that, its upper layers alone get twice as many epochs: what lies below them is computed
once. In 15 s they reached 0.803 on SST-2, all layers 0.787 (MiniLM, 1,400 rows, 1.3 and 0.8 epochs); on AG News 0.832, 0.838."""
SEVERAL_RUNS = 2.0
"""Times the useful length: with less money than that, one run uses all of it; with more, several settings are tried."""
WORTH_RUNNING = 0.6
"""Of the incumbent's useful length: a further setting that can get no more than that would lose for its length alone."""
STILL_BETTER = 0.9
"""A run whose best state came after this share of its steps was still getting better: it is tried longer first."""
WORTH_LENGTHENING = 1.6
"""Times its steps, where the money does not pay for twice as many: with less the falling rate alone makes the difference."""
PAST_THE_BEST = 1.1
"""Times the steps at which the best run was best, which is what a run needs: only those after it show that it is the best."""
SLOWER = 2.0
"""A run may take so many times the seconds that were expected of its steps: before one of its method has been seen they are known
to a factor of two, and one that is cut there has had too few steps to be compared by."""
PRUNE_AFTER = 1 / 3
"""Of its steps: before that a run's warm-up and rate decide its loss more than its worth."""
PRUNE_RATIO = 1.15
"""A run is hopeless whose validation loss is that many times the incumbent's at an equal step: over some hundred rows losses of
equally good runs differ by less than a tenth."""
VALIDATION_SHARE = 0.1
"""Of all the money, scoring a run on validation rows may take so much. Where texts are written a row takes as long as several
training steps, and 500 of them would leave nothing of a minute."""
LEAST_FOR_BASELINES = 60.0
"""Seconds of a budget below which baselines are left out: tf-idf with its cross-validation takes 2 to 12 s, and a short run
can do without."""
HIGHEST = 1.0
"""Of every measure (`metrics`): of equal runs the first one stays, so that others would be trained for nothing."""
SURELY_LEFT = 0.95
"""Of what is left now, so much is left when the evaluation gets its limit, on a busy machine too."""


class AnytimeScheduler(CellScheduler):
    """All methods in one cell, for one sum, with an adapter at every moment after the first.

    Args:
        cell: where.
        spaces: what may be tried of each method.
        search: how.
    """

    def __init__(
        self,
        settings: StudySettings,
        store: Store,
        ledger: Ledger,
        cell: Cell,
        spaces: Sequence[SearchSpace],
        search: SearchSettings,
    ) -> None:
        super().__init__()
        self.settings, self.store, self.ledger, self.cell, self.search = settings, store, ledger, cell, search
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
        self.history = RunHistory(settings, cell, self.spaces, self.state)
        self.words = AnytimeWords(self.history)
        self.cost = RunCost(settings.training, ledger, self.state, self.history)
        self._race: Rungs | None = None
        self.average = Averaging(settings, store, self.state, self.history, self.cost)
        self.probe = SolvedProbe(self.solved, self.spaces, self.state, self.history, self.cost)

    # The contract

    @property
    def finals(self) -> list[Trial]:
        if self.state.final is not None:
            return [self.history.trial(run) for run in self.state.runs if self.history.name(run) == self.state.final]
        if self.state.over:  # nothing came about: what failed says why
            return [self.history.trial(run) for run in self.state.runs]
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
        return self.cost.total_seconds() >= LEAST_FOR_BASELINES

    @property
    def prunes(self) -> bool:
        return any(
            run.stage in ("setting", "seed") or self.history.whole_of_rungs(run) for run in self.history.waiting()
        )

    @property
    def keeps(self) -> set[str]:
        if self.state.final is not None or self.state.rungs is None:
            return set()
        best = [self.history.best(runs) for runs in self.history.seed_groups().values()]
        return {self.history.name(run) for run in best if run is not None and run.stage != "probe"}

    def to_measure(self) -> Sequence[Trial]:
        return self.probe.to_measure(self.ledger.remaining(None))

    def measured(self, trial: Trial, cost: TrialCost | None, error: str = "") -> None:
        if note := self.probe.measured(self.ledger.remaining(None), cost):
            self.note(note)
        self._save()

    def begin(self, part: float) -> None:
        if self.state.account is None:
            self.state.account = Account.take(self.ledger, None, part)
            self._save()

    def next_cohorts(self, slots: int) -> Sequence[Cohort]:
        while not self.state.over:
            if waiting := self.history.waiting():
                seconds = math.inf if waiting[0].limit_seconds is None else waiting[0].limit_seconds
                return [Cohort((self.history.trial(waiting[0]),), "search", seconds, waiting[0].why)]
            if self.state.final is None and (run := self._next_run() or self.average.run()) is not None:
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
            self.note(self.words.ending(self.history.averaged() or self.history.incumbent(), self.state.ending))
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
        self.state.test_rows = costs.test_rows
        self.state.all_validation_rows = costs.validation_rows
        self.state.validation_rows = self.state.validation_rows or self._affordable_validation_rows(costs)
        self.state.seconds_per_test_row = costs.seconds_per_row or 0.0
        self.state.seconds_per_row = self.state.seconds_per_row or costs.seconds_per_validation_row
        self._save()
        cohort = replace(cohort, validation_rows=self.state.validation_rows)
        if self._without_backbone(cohort.trials[0].identifier):
            # Counting tokens of some hundred rows takes a moment; passes for them would be refused in a short budget.
            costs = replace(costs, seconds_per_row=0.0, seconds_per_validation_row=0.0)
        if self.probe.scored_before(cohort.trials[0].identifier):
            costs = replace(costs, seconds_per_validation_row=0.0)
        if any(run.stage == "early" for run in self.history.waiting()):  # its limit is of the training
            most = cohort.limit_seconds + evaluation_seconds(cohort, costs, self.settings)
            cohort = replace(cohort, limit_seconds=most)
        seconds = self.cost.left()
        if cohort.purpose == "search" and (not cohort.trials[0].solved or self.history.incumbent() is not None):
            seconds -= self.cost.test_seconds()
        limit = time_limit(seconds, cohort, costs, self.settings, None)
        return replace(limit, validation_rows=self.state.validation_rows)

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        run = next((run for run in self.history.waiting() if self.history.name(run) == trial.identifier), None)
        best = self.history.incumbent()
        if run is None or best is None or run.steps is None:
            return False
        # Between short runs the race decides, which has patience with methods that learn slowly.
        if run.stage == "rung" and not self.history.whole_of_rungs(run):
            return False
        # Once the rate falls little is left to be saved, and what the decay and its average bring has not been seen.
        if not PRUNE_AFTER * run.steps <= step <= (1 - DECAY_SHARE) * run.steps:
            return False
        expected = at_step(self.history.outcome(best).curve, step)
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
        if self.solved and (probe := self.probe.next_run()) is not None:
            return probe
        best = self.history.incumbent()
        if best is not None and (self.history.score(best) or 0.0) >= HIGHEST:
            return self._end("no run can score higher than 1.000")
        # Asked only now: which method is strongest depends on the backbone's size, which the probe's record tells.
        order = self._order()
        if not order:
            return self._end("there is no method that could be trained further")
        if not done:
            return self._early(order[0])
        if self.history.trained() or self.state.rungs is not None:
            return self._further()
        # Its early run has told what a step takes. After a probe nothing has, and the adapter that the rule expects to be best
        # comes first; what waits is raced after it.
        early = any(run.stage == "early" for run in done)
        if early and self._begins_rungs(None, order[0], self.cost.useful_steps(), self._untried()):
            return self._rung(self.history.best_trained())
        return self._main(Setting(self._first_trained(order)))

    def _first_trained(self, order: Sequence[str]) -> str:
        """The strongest method, or the upper layers alone where all of them would get next to no training, and these get more."""
        upper, seconds = reference("upper_layers").name, self.cost.training_seconds()
        steps, whole = self.cost.steps_in(order[0], seconds), order[0] == reference("everything").name
        few = steps < FEW_EPOCHS * self.cost.epoch_steps()
        # Of many rows what lies below them takes longer to compute once than it would save.
        return upper if whole and upper in order and few and self.cost.steps_in(upper, seconds) > steps else order[0]

    def _early(self, method: str) -> Run | None:
        seconds = EARLY_SHARE * self.cost.total_seconds()
        if math.isinf(seconds):
            return self._main(Setting(method))
        useful = self.cost.useful_steps()
        share = min(EARLY_STEPS, rungs_of(useful, self._least_rung_steps)[0])
        steps = max(LEAST_STEPS, round(share * useful))
        why = self.words.early(Setting(method), steps)
        return Run("early", Setting(method), self.history.seeds(method)[0], steps, why, seconds)

    def _main(self, setting: Setting, stage: Stage = "main") -> Run | None:
        """The strongest method's first run: all that the money pays for, or its useful length where it pays for several."""
        seconds, method = self.cost.training_seconds(), setting.method
        affordable, useful, epoch = (
            self.cost.steps_in(method, seconds),
            self.cost.useful_steps(),
            self.cost.epoch_steps(),
        )
        best = self.history.incumbent()
        if best is not None and best.stage == "probe":
            if affordable < (least := self.cost.least_steps()):
                # What is too little for training may still be enough for features of more rows.
                if (larger := self.probe.larger_run(seconds)) is not None:
                    return larger
                return self._end(self.words.too_few_epochs(setting, affordable / epoch, seconds, least / epoch))
        elif affordable < LEAST_STEPS:
            return self._end(self.words.too_few_steps(setting, affordable, seconds, LEAST_STEPS))
        # A first run that turns out quicker than expected leaves the rest to the average; one that is slower leaves its part.
        averages = self.average.wanted
        one = affordable < (1 if averages else SEVERAL_RUNS) * useful and not math.isinf(seconds)
        timed = self.cost.seconds_per_step(method) > 0
        steps = affordable if one else useful
        why = self.words.main(setting, affordable / epoch, useful / epoch, seconds, timed, one)
        seed = self.history.seeds(method)[0]
        if one:
            return Run(stage, setting, seed, steps, why, length="money")
        run = self._run(stage, setting, seed, steps, why)
        if averages and run.limit_seconds is not None:
            return replace(run, limit_seconds=min(run.limit_seconds, seconds / (1 + WORTH_AVERAGING)))
        return run

    def _further(self) -> Run | None:
        """Longer where the best run was still getting better; else the next setting; else another seed."""
        best = self.history.best_trained()
        if best is not None and self._seeds_are_in(best) and (settled := self._settled(best, self._whole(best), 0)):
            return self._end(settled)
        # Before the best run is asked whether it was still getting better, as a short one of a rung always is.
        if (run := self._rung(best)) is not None:
            return run
        if best is None:  # what was run has failed
            untried = self._untried()
            return self._main(untried[0], "setting") if untried else self._end("every method failed")
        outcome = self.history.outcome(best)
        length = self._whole(best)
        affordable = self.cost.steps_in(best.setting.method, self._searching_seconds())
        # What is best is asked before how long it is trained, where the money pays for both.
        untried = self._untried()
        if self._begins_rungs(best, best.setting.method, length, untried):
            return self._rung(best)
        tried_longer = any(run.stage == "longer" and run.setting == best.setting for run in self.state.runs)
        # Twice a run of a few steps is still no training: another setting is worth more then.
        worth = 2 * outcome.steps >= self.cost.least_steps()
        if (
            outcome.last_gain >= STILL_BETTER
            and worth
            and not tried_longer
            and affordable >= WORTH_LENGTHENING * outcome.steps
        ):
            steps = min(affordable, 2 * outcome.steps)
            return self._run("longer", best.setting, best.seed, steps, self.words.longer(best, steps))
        if settled := self._settled(best, length, len(untried)):
            return self._end(settled)
        for setting in untried:  # where the next one is too dear, a cheaper one may not be
            if (run := self._against(best, setting, length)) is not None:
                return run
        if untried:
            return self._end(self._too_little(*self._needed(untried[0], length)))
        used = [run.seed for run in self.state.runs if run.setting == best.setting]
        fresh = next((seed for seed in self.history.seeds(best.setting.method) if seed not in used), None)
        if fresh is None:
            return self._end("all settings and seeds have been tried")
        if affordable < WORTH_RUNNING * length:
            return self._end(self._too_little(length, best.setting.method))
        steps = min(affordable, outcome.steps)
        return self._run("seed", best.setting, fresh, steps, self.words.other_seed(best, fresh))

    def _begins_rungs(self, best: Run | None, method: str, length: int, untried: Sequence[Setting]) -> bool:
        """Begins a race of the settings that wait, where the money pays for many whole runs.

        Args:
            best: what was trained whole and is best, if anything was.
            method: by whose price runs are counted.
            length: steps that the best run needed.
        """
        whole = max(length, self.cost.useful_steps())
        seconds = self._searching_seconds()
        if best is None and self.average.wanted:  # which is as long as what will be best
            seconds = self.cost.training_seconds() - self.cost.seconds_of(method, whole)
        others = len(untried) - (best is None)
        if self.state.rungs is not None or math.isinf(seconds) or others < LEAST_SETTINGS:
            return False
        name = None if best is None else self.history.name(best)
        began = RungsState.begin(untried, name, whole, seconds, self.cost)
        # Where nothing was trained whole the race is where several settings are tried.
        if seconds < (SEVERAL_RUNS if best is None else MANY_RUNS) * began.seconds_of(method, whole):
            return False
        self.state.rungs = began
        try:
            self._race_of(self.state.rungs)
        except UserError:  # what waits is far dearer than the best: not even one whole run of it is paid for
            self.state.rungs = None
            return False
        self._save()
        return True

    def _seeds_are_in(self, best: Run) -> bool:
        """Whether a race has trained all that are still in it whole, and the best one with all of the study's seeds.

        The highest of many scores is a lucky one as well: before that further seeds may show another to be better.
        """
        if self.state.rungs is None or self._race_of(self.state.rungs).waiting():
            return False
        seeds = {run.seed for run in self.history.trained() if run.setting == best.setting}
        return len(seeds) >= len(self.history.seeds(best.setting.method))

    def _whole(self, best: Run) -> int:
        """Steps that the best run needed; in a race as many as its whole runs have."""
        length = max(LEAST_STEPS, round(self.history.outcome(best).best_step * PAST_THE_BEST))
        return length if self.state.rungs is None else max(length, self.state.rungs.steps)

    def _rung(self, best: Run | None) -> Run | None:
        """The next run of the race of settings; None where there is none, or it is over."""
        if self.state.rungs is None:
            return None
        if (job := self._race_of(self.state.rungs).next()) is None:
            return None
        setting, seed, steps, fraction = job
        return self._run("rung", setting, seed, steps, self.words.rung(setting, seed, steps, fraction, best))

    def _race_of(self, began: RungsState) -> Rungs:
        if self._race is None:
            self._race = Rungs(began, self.history, self._least_rung_steps)
        return self._race

    @property
    def _least_rung_steps(self) -> int:
        return max(LEAST_STEPS, math.ceil(self.cost.least_steps()))

    def _settled(self, best: Run, length: int, untried: int) -> str:
        """Why the rest of the money would not change what is handed over; empty where it might.

        Args:
            length: steps that the best run needed.
            untried: settings that wait; after them come seeds.
        """
        if best != self.history.incumbent():
            return ""  # something else is handed over, which these runs say nothing of
        whole = [run for run in self.history.trained() if self.history.score(run) is not None]
        fair = [run for run in whole if self.history.outcome(run).steps >= WORTH_RUNNING * length]
        seconds = self._searching_seconds()
        affordable = self.cost.steps_in(best.setting.method, seconds) // max(1, length)
        seeds = len(self.history.seeds(best.setting.method)) - 1
        further = min(affordable, untried + seeds)
        if further < 1:
            return ""  # what is left pays for nothing, which is said in other words
        outcome = self.history.outcome(best)
        score = outcome.score or 0.0
        scores = [self.history.score(run) or 0.0 for run in fair]
        probability = stays_best(scores, score, outcome.standard_error, further)
        if probability < SETTLED:
            return ""
        return self.words.settled(further, seconds, probability, len(scores))

    def _run(self, stage: Stage, setting: Setting, seed: int, steps: int, why: str) -> Run:
        """A run of so many steps, validated at growing ones, that ends decayed whatever the machine's speed is: fewer steps where
        they take far longer than expected, so that something is left for others."""
        if math.isinf(self.cost.total_seconds()):
            return Run(stage, setting, seed, steps, why, length="money")
        seconds = self.cost.seconds_of(setting.method, steps)
        # The limit and not the plan: a run that keeps to its time ends by its steps and leaves the rest.
        seconds = min(SLOWER * seconds, self._searching_seconds())
        return Run(stage, setting, seed, steps, why, seconds, length="at_most")

    def _last_run(self, setting: Setting, stage: Stage, seed: int, why: str) -> Run:
        """With all that is left but for the average: no other could follow it."""
        seconds = self._searching_seconds()
        limit = seconds if seconds < self.cost.training_seconds() else None
        return Run(stage, setting, seed, self.cost.steps_in(setting.method, seconds), why, limit, length="money")

    def _against(self, best: Run, setting: Setting, length: int) -> Run | None:
        """A run of another setting; None where the money pays for too little of it.

        Args:
            length: steps that the best run needed.
        """
        needed, _, known = self._needed(setting, length)
        steps = self.cost.steps_in(setting.method, self._searching_seconds())
        if steps < max(WORTH_RUNNING * needed, self.cost.least_steps()):
            return None
        wanted = max(needed, self.history.outcome(best).steps) if known else needed
        if steps < wanted + WORTH_RUNNING * needed:
            why = self.words.other_setting(setting, steps, best, last=True)
            return self._last_run(setting, "setting", best.seed, why)
        why = self.words.other_setting(setting, wanted, best, last=False)
        return self._run("setting", setting, best.seed, wanted, why)

    def _needed(self, setting: Setting, length: int) -> tuple[int, str, bool]:
        """Steps that a setting needs, its method, and whether a run of the method has shown it: how long the best one needed says
        something of its own method alone; others may learn more slowly, and end higher."""
        known = any(run.setting.method == setting.method for run in self.history.trained())
        return (length if known else self.cost.useful_steps()), setting.method, known

    def _untried(self) -> list[Setting]:
        """In the order of prior evidence."""
        tried = {run.setting for run in self.state.runs if run.stage != "early"}
        impossible, order = self.history.impossible(), self._order()
        waiting = settings_in_order(self.spaces, order) if order else []
        return [
            one
            for one in waiting
            if one not in tried and (one.method, one.choice) not in impossible and self._may_try(one.method)
        ]

    def _may_try(self, method: str) -> bool:
        """Whether the study allows another setting of it."""
        tried = {run.setting for run in self.state.runs if run.setting.method == method}
        return self.search.trials is None or len(tried) < self.search.trials

    def _order(self) -> list[str]:
        impossible = self.history.impossible()
        possible = [
            name
            for name in self.trained
            if any((name, choice) not in impossible for choice in range(len(self.spaces[name].variants)))
        ]
        return strongest(possible, self.history.parameters())

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
        averaged = self.average.first() is not None
        return self.words.too_little(method, self.cost.steps_in(method, seconds), seconds, length, known, averaged)

    # The end

    def _choose(self) -> None:
        best = self.history.averaged() or self.history.choice()
        if best is None:
            return
        left = self.cost.left() - self.cost.test_seconds()
        self.state.ending = f"{self.state.ending}{unspent(left)}."
        self.state.final = self.history.name(best)
        self._save()

    def _rows_to_evaluate(self) -> int:
        """Test rows on which the adapter is evaluated now; 0 where that is done, or does not pay."""
        if self.state.final is None or self.state.refused or self.state.outcomes[self.state.final].evaluated:
            return 0
        if self.state.evaluated_rows is None:
            # its validation rows were evaluated a moment ago, on the machine as it is now
            each = self.state.outcomes[self.state.final].seconds_per_row
            if not self._without_backbone(self.state.final):
                each = max(self.state.seconds_per_test_row, each)
            # less than is left: the limit is asked a moment later, and would refuse what no longer fits
            left = SURELY_LEFT * self.cost.left() - EVALUATION_SECONDS - BETWEEN_SECONDS
            affordable = left / (EVALUATION_MARGIN * each) if each > 0 else math.inf
            rows = int(min(self.state.test_rows, max(0.0, affordable)))
            self.state.evaluated_rows = rows if rows >= min(LEAST_TEST_ROWS, self.state.test_rows) else 0
            if rows < self.state.test_rows:
                some = self.state.evaluated_rows or "none"
                self.note(f"{some} of {self.state.test_rows} test rows are evaluated: too little time is left.")
            self._save()
        return self.state.evaluated_rows

    def _without_backbone(self, trial: str) -> bool:
        """Whether a run's adapter counts tokens alone."""
        return any(run.setting.tokens == 0 and self.history.name(run) == trial for run in self.state.runs)

    # Money

    def _affordable_validation_rows(self, costs: EvaluationCost) -> int:
        """Validation rows on which all runs are scored: fewer than there are where texts are written for each of them."""
        rows = min(costs.validation_rows, self.settings.training.validation_rows)
        each, total = EVALUATION_MARGIN * costs.seconds_per_validation_row, self.cost.total_seconds()
        # What is solved first has passed them through the backbone, and every run is compared with it.
        if self.solved or each == 0 or math.isinf(total):
            return rows
        paid = max(LEAST_TEST_ROWS, int(VALIDATION_SHARE * total / each))
        if paid < rows:
            self.note(f"runs are scored on the first {paid} of {rows} validation rows: all would take too long.")
        return min(rows, paid)

    def _searching_seconds(self) -> float:
        """What may be tried with: without what the best run takes a second time, to be averaged."""
        return self.cost.training_seconds() - self.average.seconds()

    def _save(self) -> None:
        self._file.write(self.state)


def at_step(curve: Sequence[tuple[int, float]], step: int) -> float | None:
    """The loss of a curve at a step, between two points in a straight line; None outside of it."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        if before <= step <= after:
            return low + (high - low) * (step - before) / max(1, after - before)
    return next((loss for at, loss in curve if at == step), None)
