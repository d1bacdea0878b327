"""What a trial leaves: its adapter, where it is kept, and its record, of success or of failure."""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune.engines.adapters import adapter_info
from dollartune.engines.feature_account import FeatureAccount
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, update_info
from dollartune.train.rows_in_time import share_of
from dollartune.trials.build_record import error_class, evaluated_record, failed_record, scored_record
from dollartune.trials.record import AdapterFile, Cost, Failure, Measured, Parameters, TrialRecord, made_of

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort, Driver
    from dollartune.engines.trial_context import TrialContext
    from dollartune.engines.trial_scores import TrialScores
    from dollartune.evaluate.evaluation import Evaluation
    from dollartune.train.trial import TrialState
    from dollartune.trials.trial import Trial

log = logging.getLogger("dollartune")

TRACE_CHARACTERS = 4000
"""The last ones of a stack: the place of the error, without megabytes of a recursion."""


class RecordWriter:
    """Leaves adapters and records with the driver, whose ledger says what each trial has cost so far.

    Args:
        places: places of each input that stay free for virtual tokens; an adapter says so.
    """

    def __init__(self, settings: StudySettings, driver: Driver, places: int) -> None:
        self.settings, self.ledger, self.driver, self.places = settings, driver.ledger, driver, places
        self.features = FeatureAccount(driver)
        self._best_tried: dict[tuple[TrialContext, bool], float] = {}

    def cost(self, trial: Trial) -> Cost:
        """What was booked for a trial until now, by the attempt at it that leaves the record."""
        booked = self.ledger.totals()
        seconds, dollars = (sums.get(trial.identifier, 0.0) for sums in (booked.by_trial, booked.dollars_by_trial))
        cost = Cost(seconds=seconds, dollars=dollars, price_per_hour=self.ledger.price_per_hour)
        read, of_these = self.features.seconds(trial)
        if not read:  # many methods read none, and their records say nothing of it
            return cost
        return cost.model_copy(update={"features_seconds": read, "features_booked_seconds": of_these})

    def whole_cost(self, trial: Trial) -> Cost:
        """The same with the trials that it goes on from or is averaged with, and with what the frozen backbone gave for others
        before, as its adapter says it."""
        return self.cost(trial).plus(part.cost for part in made_of(trial, self._left))

    def _left(self, trial: str) -> TrialRecord | None:
        # Read without asking whether it is there: a worker elsewhere knows that of its own trials alone.
        try:
            return self.driver.read(trial)
        except (UserError, OSError):  # it was removed
            return None

    def adapter(
        self, cohort: Cohort, trial: Trial, context: TrialContext, state: TrialState | None, scores: TrialScores
    ) -> AdapterFile | None:
        """Writes the adapter, if it is kept."""
        # By validation score: choosing by test rows would make them training data.
        if state is None or not self._worth_keeping(cohort, trial, context, scores.validation.score):
            return None
        with self.ledger.book("export", trial=trial.identifier, method=trial.variant.group):
            shown = scores.test.scores if scores.test is not None else {}
            trained = share_of(context.splits.train, state.progress.rows_share or 1.0)
            info = adapter_info(
                trial, context.task, context.backbone, self.settings, shown, self.whole_cost(trial), self.places,
                replace(context.splits, train=tuple(trained)), trial.averaged_with is not None or state.progress.on_validation,
            )  # fmt: skip
            size = save_adapter(self.driver.folder(trial.identifier) / "adapter", state.adapter, info)
        return AdapterFile(folder="adapter", bytes=size)

    def scored(
        self,
        trial: Trial,
        context: TrialContext,
        state: TrialState | None,
        scores: TrialScores,
        cost: Cost,
        measured: Measured,
    ) -> None:
        """The record of a trial that ended with a score."""
        adapter = state.adapter if state is not None else None
        parameters = Parameters(
            trainable=adapter.count() if adapter else 0,
            total=context.backbone.anatomy.at("model")[0].parameters,
            modules=adapter.modules_edited() if adapter else {},
            reported=adapter.reported() if adapter else {},
        )
        progress = state.progress if state is not None else None
        measured = {"data": context.data_facts(scores.test), "parameters": parameters, **measured}
        if scores.class_offsets is not None:
            measured["class_offsets"] = scores.class_offsets
        record = scored_record(trial, context.task, scores.validation, scores.test, progress, cost, **measured)
        self.driver.leave(trial, record, () if scores.test is None else scores.test.predictions)

    def evaluated(self, trial: Trial, test: Evaluation) -> None:
        """The record of a search trial becomes that of a final trial; its adapter says how it did."""
        folder = self.driver.folder(trial.identifier) / "adapter"
        with self.ledger.book("export", trial=trial.identifier, method=trial.variant.group):
            size = update_info(folder, {"scores": dict(test.scores), "cost": self.whole_cost(trial).model_dump()})
        file = AdapterFile(folder="adapter", bytes=size)
        tried = self.driver.read(trial.identifier)
        data = tried.data.model_copy(update={"shortened": (tried.data.shortened or 0) + test.shortened})
        record = evaluated_record(tried, test, self.cost(trial), adapter=file, data=data)
        self.driver.leave(trial, record, test.predictions)

    def failed(self, trial: Trial, error: Exception, cohort: Cohort | None = None) -> None:
        """The record of a trial that broke."""
        if cohort is not None and cohort.purpose == "evaluate":  # what was tuned is still there, unevaluated
            failure = Failure.model_validate({"class": error_class(error), "message": str(error)})
            self.driver.leave(trial, self.driver.read(trial.identifier).with_facts(error=failure))
            return
        kind = error_class(error)
        # Other classes (out of memory, spent, diverged) are explained by their message; a stack says nothing to a user.
        stack = "".join(traceback.format_exception(error)) if kind == "error" else None
        if stack is None:
            self.driver.leave(trial, failed_record(trial, kind, str(error), self.cost(trial), None))
            return
        log.debug("%s", stack)
        message = f"{type(error).__name__}: {error}"
        self.driver.leave(trial, failed_record(trial, kind, message, self.cost(trial), stack[-TRACE_CHARACTERS:]))

    def _worth_keeping(self, cohort: Cohort, trial: Trial, context: TrialContext, score: float | None) -> bool:
        """Whether an adapter is written: of finals all, of tries the best so far, to be there if the study is ended."""
        if self.settings.keep_adapters == "none":
            return False
        if cohort.purpose == "final" or trial.averaged_with is not None:
            return True
        if score is None:
            return False
        # Per context: scores of another task or backbone are not comparable. What is trained may still be averaged with another
        # run, where something solved is as good.
        best = self._best_tried.get((context, trial.solved), -math.inf)
        self._best_tried[context, trial.solved] = max(best, score)
        return score > best
