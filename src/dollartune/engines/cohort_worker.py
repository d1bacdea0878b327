"""Does one cohort, stage by stage. Every second is booked, every failure recorded.

    load -> measure -> limit -> train -> for each trial: evaluate (trial_scores) -> extra metrics -> record (record_writer)

What is recorded is never done again, and a cohort that was interrupted goes on from its last checkpoint. All stages end by
one deadline of the ledger: training asks it before each step and leaves the time that the later stages need; the others
have no steps, so a timer interrupts them (`stage_limits`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dollartune import format as numbers
from dollartune.budget.deadline import BudgetSpent, closing_seconds, until
from dollartune.budget.ledger import Share
from dollartune.budget.peak_memory import PeakMemory
from dollartune.budget.study_budget import MEASURES_SHARE, memory_of
from dollartune.engines.baselines import BaselineRows, baseline_facts, evaluated, fitted, labelled_texts
from dollartune.engines.begin_with import Beginning, begin_with
from dollartune.engines.display import CohortWatcher, Display
from dollartune.engines.extra_metrics import SPENT
from dollartune.engines.measure_cost import measure_trial_cost, probe
from dollartune.engines.record_writer import RecordWriter
from dollartune.engines.stage_limits import StageLimits
from dollartune.engines.trial_scores import TrialScorer
from dollartune.errors import UserError
from dollartune.evaluate.cost import request_cost
from dollartune.train.distributed import shard_copies, whole_layers
from dollartune.train.free_memory import MemoryTaken, PassesTooLarge, memory_limited, need_free
from dollartune.train.head_start import begin_at_probe
from dollartune.train.length import Planner, at_most, end_decayed, fill_time
from dollartune.train.loop import CohortTrainer
from dollartune.train.out_of_memory import halved_after_out_of_memory, is_out_of_memory
from dollartune.train.solve import FEATURE_ROWS, solve, solve_seconds
from dollartune.train.trial import TrialState
from dollartune.trials.build_record import failed_record, scored_record, validation_result
from dollartune.trials.record import Measured, Memory, RequestFacts

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort, Driver, TimeLimit
    from dollartune.engines.trial_context import ContextCache, TrialContext
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.train.settings import TrainingSettings
    from dollartune.trials.trial import Trial

REQUEST_SECONDS = 0.5
"""For asking requests again and again where a study limits what serving takes: half of what a study that compares them spends, as
each method of a search is asked before it is trained."""


class CohortWorker:
    """Runs cohorts on this machine, one at a time.

    Args:
        settings: the study.
        contexts: where backbones and data come from.
        driver: where records, adapters and checkpoints go, and whose ledger books its time: the study's, or one in memory
            whose limit is the cohort's time limit.
        display: who shows progress.
    """

    def __init__(
        self, settings: StudySettings, contexts: ContextCache, driver: Driver, display: Display | None = None
    ) -> None:
        self.settings, self.contexts, self.ledger, self.driver = settings, contexts, driver.ledger, driver
        self.display = display or Display()
        self.limits = StageLimits(settings, self.ledger)
        self.scorer = TrialScorer(settings, driver, self.display, self.limits)
        self.writer = RecordWriter(settings, driver, contexts.places)
        self._requests: dict[tuple[int, str], RequestFacts] = {}
        """By backbone and methods: what a request takes, where the study limits that."""

    def run(self, cohort: Cohort) -> None:
        """Trains, evaluates and records a cohort. A failure is recorded with its class.

        Out of memory first retries in smaller passes of the same effective batch. What fails then is tried trial by trial,
        so that the one that breaks takes no other with it.
        """
        training = self.settings.training
        while True:
            try:
                self._run_once(cohort, training)
                return
            except Exception as error:
                if not self._missing(cohort):
                    raise  # what broke came after the last record, which says how its trial ended
                most, taken = memory_of(self.settings), isinstance(error, MemoryTaken)
                rows = training.micro_batch_size or training.batch_size
                if isinstance(error, PassesTooLarge):
                    rows = error.rows
                if is_out_of_memory(error) and most is not None and not taken:
                    error = MemoryError(
                        f"it needs more than the {numbers.size(most)} of memory that the budget allows."
                    )
                smaller = None if taken else halved_after_out_of_memory(error, rows, "rows per pass")
                if smaller is not None:
                    training = training.model_copy(update={"micro_batch_size": smaller})
                    self.release()  # what the failed attempt left in memory would make the next one fail too
                    continue
                # Alone it is known which trial broke; of several the cohort is taken apart first.
                if len(cohort.trials) == 1:
                    self.writer.failed(cohort.trials[0], error, cohort)
                    if is_out_of_memory(error):
                        self.release()  # what it left would be counted against the next trial
                    return
                self.release()
            # Trials that were recorded before the break are done, and a record is never made twice.
            for trial in self._missing(cohort):
                self.run(replace(cohort, trials=(trial,)))
            return

    def _run_once(self, cohort: Cohort, training: TrainingSettings) -> None:
        if cohort.trials[0].answers_alone:
            self._run_baseline(cohort)
            return
        context = self.load(cohort.trials[0])
        # Not while loading: weights have to be there in any case, and what loading took is given back.
        with memory_limited(memory_of(self.settings), context.backbone.device):
            self._run_loaded(cohort, context, training)

    def _run_loaded(self, cohort: Cohort, context: TrialContext, training: TrainingSettings) -> None:
        limit = self.driver.time_limit(cohort, context.costs())
        if limit.test_rows is not None:
            cohort = replace(cohort, test_rows=limit.test_rows)
        if limit.validation_rows is not None:
            cohort = replace(cohort, validation_rows=limit.validation_rows)
        if cohort.purpose == "evaluate":
            self.writer.features.begin((trial, self.driver.read(trial.identifier).cost) for trial in cohort.trials)
            for trial in cohort.trials:
                with self.writer.features.reading(context, [trial]):
                    test = self.scorer.score_stored(cohort, trial, context)
                self.writer.evaluated(trial, test)
            return
        self.writer.features.begin()
        cohort = self._within_limits(cohort, context)
        missing = self._missing(cohort)
        if not cohort.trials:
            return
        # Set before the try: where training breaks nothing is there to evaluate, and adapters must come off all the
        # same.
        states: dict[str, TrialState] = {}
        peak_bytes, unpaid = 0, False
        try:
            if cohort.trials[0].trains:
                states, peak_bytes = self._train(cohort, context, training, limit)
            for trial in missing:
                if self.driver.has(trial.identifier):  # training has failed, which is recorded
                    continue
                state = states.get(trial.identifier)
                try:
                    with self.writer.features.reading(context, [trial]):
                        scores = self.scorer.score(cohort, trial, context, state)
                    adapter = self.writer.adapter(cohort, trial, context, state, scores)
                    cost = self.writer.cost(trial)  # before the extra metrics, which the method pays and not the trial
                    measured = self._extra_metrics(cohort, trial, context, state, limit)
                    measured["memory"] = Memory(peak_bytes=peak_bytes, trials=len(states))
                    if adapter is not None:
                        measured["adapter"] = adapter
                    self.writer.scored(trial, context, state, scores, cost, measured)
                except BudgetSpent as error:
                    unpaid = True
                    self.writer.failed(trial, error)
        finally:
            # A list, because removing changes what is looped over.
            for name in [t.identifier for t in cohort.trials if t.identifier in context.attached.adapters]:
                context.attached.remove(name)
        unpaid = unpaid or any(state.progress.stopped == "budget" for state in states.values())
        if not unpaid or cohort.purpose == "search":  # with more money a final trial goes on from its checkpoint
            self.driver.checkpoints(cohort.name).clear()

    def _run_baseline(self, cohort: Cohort) -> None:
        """Fits and records a trial that needs no backbone."""
        (trial,) = cohort.trials
        method = trial.variant.group
        rows = self.baseline_rows(trial)
        limit = self.driver.time_limit(cohort, rows.costs())
        end = self.limits.limit_end(limit)
        most = f"fitting it takes longer than {limit.seconds:.1f} s, which is the most that a baseline may take of this budget."
        with until(end, most):
            with self.ledger.book("tune", shares=[Share(trial.identifier, method)]):
                answerer = fitted(trial, rows)
            with self.ledger.book("evaluate", trial=trial.identifier, method=method):
                self.display.evaluating(trial)
                validation = rows.splits.validation[: self.settings.training.validation_rows]
                on_validation = evaluated(answerer, rows.task, validation)
                # Test rows choose nothing, so a search trial never sees them.
                test = evaluated(answerer, rows.task, rows.splits.test) if cohort.purpose == "final" else None
            with self.ledger.book("evaluate", method=method):
                facts = baseline_facts(answerer, trial, rows, self.settings)
        validated = validation_result(on_validation, rows.task, test is None)
        record = scored_record(trial, rows.task, validated, test, None, self.writer.cost(trial), **facts)
        self.driver.leave(trial, record, () if test is None else test.predictions)

    # The stages

    def _within_limits(self, cohort: Cohort, context: TrialContext) -> Cohort:
        """The cohort without trials whose method is dearer to serve than the study allows; their records say by how much.

        Before anything is trained: what a request takes depends on the method and its sizes, hardly on what it learns.
        """
        if self.settings.limits is None:
            return cohort
        over = []
        for trial in self._missing(cohort):
            if not trial.trains:
                continue
            with (
                self.ledger.book("evaluate", trial=trial.identifier, method=trial.variant.group),
                self.limits.until_spent(trial, "while the cost of a request was measured"),
            ):
                facts = self._request_facts(trial, context)
            if exceeded := self.settings.limits.exceeded(facts.serving(self.ledger.price_per_hour)):
                over.append(trial)
                record = failed_record(trial, "limit", "; ".join(exceeded), self.writer.cost(trial))
                self.driver.leave(trial, record.with_facts(inference=facts))
                self.display.note(f"{trial.variant.label} is not tuned: {'; '.join(exceeded)}.")
        return replace(cohort, trials=tuple(trial for trial in cohort.trials if trial not in over))

    def _request_facts(self, trial: Trial, context: TrialContext) -> RequestFacts:
        """What a request takes with a trial's method; measured once for methods that differ in their learning rate alone."""
        methods = [{k: v for k, v in method.describe().items() if k != "lr"} for method in trial.variant.build()]
        key = (id(context.backbone), str(methods))
        if key not in self._requests:
            context.attached.add(trial.identifier, context.methods(trial), trial.seed)
            try:
                cost = request_cost(
                    context.evaluator(free_generation=False), trial.identifier, trial.variant.build(),
                    context.splits.validation, trial.seed, REQUEST_SECONDS,
                )  # fmt: skip
            finally:
                context.attached.remove(trial.identifier)
            self._requests[key] = RequestFacts.model_validate(asdict(cost))
        return self._requests[key]

    def baseline_rows(self, trial: Trial) -> BaselineRows:
        """What a trial without a backbone needs. Booked for all, as `load`."""
        with self.ledger.book("load"), self.limits.until_spent(trial, "while the data was loaded"):
            rows = self.contexts.baseline_rows(trial)
            (method,) = trial.variant.build()
            # Before its libraries, which stay in memory once they are imported.
            with memory_limited(memory_of(self.settings), torch.device("cpu")):
                need_free(method.fit_bytes(labelled_texts(trial, rows)), f"fitting {method.name}")
            # Before the deadline of the fit: importing scikit-learn takes a second, which is no method's.
            method.import_libraries()
            return rows

    def load(self, trial: Trial) -> TrialContext:
        """Backbone, rows and encodings, and what evaluating a row takes, where money has to be divided by it. Booked for
        all: whoever comes first does not pay for the others."""
        with self.ledger.book("load"), self.limits.until_spent(trial, "while the backbone and the data were loaded"):
            context = self.contexts.context(trial)
        # Without a limit nothing is divided, and the look would only cost.
        if self.limits.limited and context.row_costs.seconds_per_row is None:
            doing = self.limits.until_spent(trial, "while the costs of evaluating were measured")
            with self.ledger.book("plan"), doing, memory_limited(memory_of(self.settings), context.backbone.device):
                probe(context, trial, self.settings.evaluation)
        return context

    def measure(self, trial: Trial) -> TrialCost:
        """What a trial's method costs, from a few training steps and rows; booked as planning for the method."""
        with self.ledger.book("load"), self.limits.until_spent(trial, "while the backbone and the data were loaded"):
            context = self.contexts.context(trial)
        doing = self.limits.until_spent(trial, "while the costs of the method were measured")
        within = memory_limited(memory_of(self.settings), context.backbone.device)
        with self.ledger.book("plan", method=trial.variant.group), doing, within:
            return measure_trial_cost(context, trial, self.settings)

    def _train(
        self, cohort: Cohort, context: TrialContext, training: TrainingSettings, limit: TimeLimit
    ) -> tuple[dict[str, TrialState], int]:
        """Trains all trials of a cohort together, from their newest checkpoint on; those that fail are recorded.

        Returns:
            What was trained, by trial; the most bytes of memory that it took.
        """
        shares = [Share(trial.identifier, trial.variant.group) for trial in self._missing(cohort)]
        with (
            PeakMemory() as peak,
            # Around the booking: what it comes to is known at its end.
            self.writer.features.reading(context, cohort.trials),
            self.ledger.book("tune", shares=shares),
            self.limits.until_spent(cohort.trials[0], "in the middle of a step of the tuning"),
        ):
            states = self._states(cohort, context, training, limit)
        # After the block, at whose end a GPU's peak is read.
        return {state.name: state for state in states}, peak.peak_bytes

    def _states(
        self, cohort: Cohort, context: TrialContext, training: TrainingSettings, limit: TimeLimit
    ) -> list[TrialState]:
        """What `_train` does while its memory and its seconds are counted."""
        failures: dict[str, Exception] = {}
        states = [self._attach(trial, context, training) for trial in cohort.trials]
        rows_per_pass = training.micro_batch_size or FEATURE_ROWS
        if cohort.trials[0].solved:
            most = f"features and solution took longer than the {limit.seconds:.1f} s that they may."
            with until(self.limits.limit_end(limit), most):
                for state in states:
                    left, costs = self.limits.features_left(cohort, context, limit, state), context.row_costs
                    solve(
                        state, context.backbone, context.attached, context.features, rows_per_pass,
                        left, costs.seconds_per_validation_row,
                    )  # fmt: skip
                    costs.note_solution(
                        state.progress.solution_seconds, solve_seconds(state.adapter, state.progress.examples)
                    )
            return states
        checkpoints = self.driver.checkpoints(cohort.name)
        # Before a head is begun at the probe: a resumed trial has a head already.
        checkpoints.load(states)
        # An adapter that is continued brings its own head, or one that it had before.
        if training.head_start == "probe":
            for state in states:
                if state.progress.step == 0 and not state.progress.begun_with:
                    begin_at_probe(state, context.backbone, context.attached, context.features, rows_per_pass)
        for state in states:
            if state.progress.stopped == "failed":  # before the interruption
                failures[state.name] = FloatingPointError(state.progress.error)
        # After loading, since what these seconds took is no longer left to train with.
        deadline = self.limits.training_end(cohort, context, limit, states)
        CohortTrainer(
            context.backbone,
            context.attached,
            states,
            # The rows that it is scored on: where money does not pay for more, looks at them would take it.
            () if cohort.trials[0].averaged_with is not None else context.validation[: cohort.validation_rows],
            CohortWatcher(self.display, cohort.trials, states, checkpoints, self.driver.prune),
            deadline.expired if deadline is not None else lambda: False,
            lambda state, error: failures.__setitem__(state.name, error),
            deadline.remaining if deadline is not None else lambda: math.inf,
            _planner(cohort.trials[0], states[0]) if deadline is not None else None,
            seconds_per_validation_row=context.row_costs.seconds_per_validation_row,
        ).run()
        for trial, state in zip(cohort.trials, states, strict=True):
            # An untrained adapter has the backbone's score, which must not stand as the method's.
            if state.progress.stopped == "budget" and state.progress.step == 0:
                failures[state.name] = BudgetSpent("the budget was spent before the first training step.")
            elif state.progress.ending == "budget" and cohort.purpose == "final":
                self.display.note(_cut(trial, state))
        for trial in self._missing(cohort):
            if trial.identifier in failures:
                self.writer.failed(trial, failures[trial.identifier])
        return states

    def _attach(self, trial: Trial, context: TrialContext, training: TrainingSettings) -> TrialState:
        # Under FSDP a layer's weights are gathered here only: methods that begin at them (PiSSA, DoRA) need them whole.
        with whole_layers(context.backbone.model):
            adapter = context.attached.add(trial.identifier, context.methods(trial), trial.seed)
            # Before the copies are sharded, as the stored tensors are whole.
            begun_with = self._begin(trial, adapter, context)
        shard_copies(adapter)
        train = [*context.train, *context.validation] if trial.averaged_with is not None else context.train
        return TrialState(
            trial.identifier, adapter, train, training, trial.seed, trial.fraction, trial.steps,
            from_money=trial.length != "settings", begun_with=begun_with,
        )  # fmt: skip

    def _begin(self, trial: Trial, adapter: Adapter, context: TrialContext) -> str:
        """Gives an adapter the tensors that it goes on with; the folder that they are from, empty where it begins fresh."""
        if trial.extends is not None:
            before = self.driver.folder(trial.extends) / "adapter"
            beginning = begin_with(before, adapter, context.backbone, context.task)
            if not beginning.begun:
                raise UserError(f"{trial.variant.label} cannot go on with the adapter in {before}: {beginning.remark}.")
            return str(before)
        folder = self.settings.begin_with
        if folder is None:
            return ""
        # What solving finds takes the place of any tensor that was there before.
        beginning = (
            Beginning(False, f"{trial.variant.label} is fitted to these rows at once")
            if trial.solved
            else begin_with(Path(folder), adapter, context.backbone, context.task)
        )
        how = f"with {folder}" if beginning.begun else f"fresh, not with {folder}"
        remark = f": {beginning.remark}" if beginning.remark else ""
        self.display.note(f"{trial.variant.label}, seed {trial.seed}, begins {how}{remark}")
        return folder if beginning.begun else ""

    def _extra_metrics(
        self, cohort: Cohort, trial: Trial, context: TrialContext, state: TrialState | None, limit: TimeLimit
    ) -> Measured:
        """Forgetting and the cost of a request, of a final trial, in a part of its time limit: they decide no score, so
        they may not take what could have been trained with."""
        if cohort.purpose == "search":
            limited = self.settings.limits is not None and trial.trains
            return {"inference": self._request_facts(trial, context)} if limited else {}
        seconds = math.inf
        if not math.isinf(limit.seconds):
            left = self.ledger.remaining(limit.method) - closing_seconds()
            # A limit is the whole cohort's, and each of its trials is measured.
            seconds = min(MEASURES_SHARE * limit.seconds / len(cohort.trials), left)
        try:
            with (
                self.ledger.book("evaluate", method=trial.variant.group),
                self.limits.until_spent(trial, "while forgetting and the cost of a request were measured"),
            ):
                return context.measures.take(
                    context.evaluator(free_generation=False), None if state is None else trial.identifier,
                    trial.variant.build(), context.splits.test, trial.seed, seconds,
                    context.row_costs.seconds_per_row or 0.0,
                )  # fmt: skip
        except BudgetSpent:  # what was trained and scored is not lost for figures beside it
            return context.measures.left_out(SPENT, state is not None)

    # What the stages share

    def release(self) -> None:
        """Forgets backbones and data, to have their memory back."""
        self.contexts.release()

    def _missing(self, cohort: Cohort) -> list[Trial]:
        """Trials without the record that the cohort is there to leave."""
        return [trial for trial in cohort.trials if not self._left(cohort, trial.identifier)]

    def _left(self, cohort: Cohort, trial: str) -> bool:
        if not self.driver.has(trial):
            return False
        return cohort.purpose != "evaluate" or self.driver.read(trial).status != "tried"


def _planner(trial: Trial, state: TrialState) -> Planner | None:
    """Who moves the end of a training; None where its rate is meant to stay up, so that there is no decay to come to."""
    if trial.length == "settings":
        return None if state.schedule == "constant" else end_decayed
    return at_most(fill_time, state.total_steps) if trial.length == "at_most" else fill_time


def _cut(trial: Trial, state: TrialState) -> str:
    """What became of a training whose length is set and whose money ended before."""
    planned, cut, made = state.progress.plan[0].total_steps, state.progress.plan[1].step, state.progress.step
    return (
        f"{trial.label}, seed {trial.seed}: the budget pays for {made:,} of {planned:,} steps, so the learning rate falls to 0 "
        f"over the last {made - cut:,}. With a larger one the same command goes on from before that."
    )
