"""How a trial did: its adapter on the validation rows, and on the test rows where it is a final one.

    validation rows ─> offsets of classes, where held-out rows gain by them ─> test rows

Test rows come last, with the adapter as it is handed over, and choose nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dollartune import format as numbers
from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.ledger import Share
from dollartune.engines.adapters import average_with
from dollartune.engines.base import (
    EVALUATION_MARGIN,
    EVALUATION_SECONDS,
    LEAST_TEST_ROWS,
    scored_beside,
    validation_rows,
)
from dollartune.errors import UserError
from dollartune.evaluate.class_offsets import held_out_offsets, prior_offsets
from dollartune.evaluate.evaluation import CALIBRATION_ROWS
from dollartune.export.directory import load_adapter
from dollartune.metrics import counts_rare_classes
from dollartune.train.distributed import processes
from dollartune.train.features import read_of
from dollartune.train.head_start import has_offsets, shift_classes
from dollartune.train.rows_in_time import fresh_counts
from dollartune.train.solve import FEATURE_ROWS, solve_on_all, solve_on_all_seconds
from dollartune.trials.build_record import validation_result
from dollartune.trials.record import ValidationResult

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort, Driver
    from dollartune.engines.display import Display
    from dollartune.engines.stage_limits import StageLimits
    from dollartune.engines.trial_context import TrialContext
    from dollartune.evaluate.class_offsets import HeldOutOffsets
    from dollartune.evaluate.evaluation import Evaluation, Prediction
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial

LEAST_FOR_OFFSETS = 20
"""Validation rows below which no offsets of classes are chosen: a half of them has one row of a class in ten."""
SOLVE_AGAIN_MARGIN = 1.5
"""Solving on the validation rows too takes so many times what is expected: of a few hundred rows a solution takes a moment, whose
seconds say little of a longer one's."""
SMALLEST = 1e-12
"""A probability that was rounded to nothing still has a logarithm."""


@dataclass(frozen=True)
class TrialScores:
    """How a trial did."""

    validation: ValidationResult
    test: Evaluation | None
    """None for a search trial."""
    class_offsets: tuple[float, ...] | None = None
    """That were added to the scores of classes."""


class TrialScorer:
    """Evaluates what was tuned, and books it.

    Args:
        driver: whose ledger books it, and who knows where adapters of earlier trials lie.
    """

    def __init__(self, settings: StudySettings, driver: Driver, display: Display, limits: StageLimits) -> None:
        self.settings, self.ledger, self.driver = settings, driver.ledger, driver
        self.display, self.limits = display, limits

    def score(self, cohort: Cohort, trial: Trial, context: TrialContext, state: TrialState | None) -> TrialScores:
        """A final trial on the test rows and the validation rows; a search trial on the validation rows alone.

        Args:
            state: what was tuned, attached to the backbone; None where the backbone alone is asked.
        """
        if trial.averaged_with is not None and state is not None:
            return self._average(trial, context, state, self.driver.read(trial.averaged_with))
        settings = self.settings.evaluation
        adapter, methods = None if state is None else trial.identifier, trial.variant.build()
        test = None
        with (
            self.ledger.book("evaluate", trial=trial.identifier, method=trial.variant.group),
            self.limits.until_spent(trial, "before the evaluation of the tuned adapter had ended"),
        ):
            self.display.evaluating(trial)
            rows = context.splits.validation[: validation_rows(cohort, context.costs(), self.settings)]
            if state is not None and cohort.purpose == "search":
                rows = rows[: self._affordable(trial, context, state, len(rows))]
            validation = context.evaluate(adapter, methods, rows, trial.seed, False, settings.batch_size)
            if trial.solved:
                context.row_costs.note_rows(validation.examples)
            else:
                context.row_costs.note_validation(validation.seconds, validation.examples)
            offsets = None if state is None else self._class_offsets(trial, context, state, validation)
            if state is not None and trial.solved and self.settings.training.train_on_validation:
                # between the two: the validation score is of rows that were not trained on, the test score of what is handed over
                self._solve_on_all(trial, context, state)
            if state is not None and offsets is not None:
                shift_classes(state.adapter, context.backbone, offsets.offsets.tolist())
                if not context.task.metric.startswith("recall:"):  # of which they were not chosen by the measure itself
                    validation = replace(validation, score=offsets.after)
            if cohort.purpose == "final":
                rows, free = context.splits.test[: cohort.test_rows], settings.free_generation
                test = context.evaluate(adapter, methods, rows, trial.seed, free, settings.batch_size)
                check_score(context, test)
                context.row_costs.note_test(test.seconds, test.examples)
        validated = validation_result(validation, context.task, test is None)
        return TrialScores(validated, test, None if offsets is None else tuple(offsets.offsets.tolist()))

    def _affordable(self, trial: Trial, context: TrialContext, state: TrialState, most: int) -> int:
        """Validation rows on which what was tuned is scored: of a solved trial whose time ended as few as its training rows, and
        never more than can be paid for at the pace that was seen in its tuning: without a score nobody would get it. Rows whose
        features are there take nothing.

        Args:
            most: that it should be scored on.
        """
        readout, progress = state.adapter.readout, state.progress
        left, each = self.limits.left(trial) - EVALUATION_SECONDS, progress.seconds_per_row
        if each <= 0:
            return most
        fresh, wanted = list(range(most + 1)), most
        if readout is not None:
            rows = read_of(readout, context.validation[:most])
            fresh = fresh_counts(context.features, context.backbone, rows, readout.pooling)
            if progress.stopped == "budget":
                wanted = scored_beside(progress.rows_share or 1.0, most)
        else:  # a look does less than scoring where texts are scored
            each = max(each, context.row_costs.seconds_per_validation_row)
            if most * each <= left:  # which is tight by plan: the margin is for others
                return most
        paid = max(0.0, left) / (EVALUATION_MARGIN * each)
        # with each row that has to pass come those behind it that need not
        return max(min(most, LEAST_TEST_ROWS), bisect_right(fresh, min(fresh[wanted], paid)) - 1)

    def score_stored(self, cohort: Cohort, trial: Trial, context: TrialContext) -> Evaluation:
        """The adapter that a search trial left, on the test rows."""
        settings = self.settings.evaluation
        with (
            self.ledger.book("evaluate", trial=trial.identifier, method=trial.variant.group),
            self.limits.until_spent(trial, "before the evaluation of the tuned adapter had ended"),
        ):
            self.display.evaluating(trial)
            adapter = load_adapter(self.driver.folder(trial.identifier) / "adapter", context.backbone)
            context.attached.put(trial.identifier, adapter)
            try:
                rows = context.splits.test[: cohort.test_rows]
                test = context.evaluate(
                    trial.identifier, trial.variant.build(), rows, trial.seed, settings.free_generation,
                    settings.batch_size,
                )  # fmt: skip
                check_score(context, test)
            finally:
                context.attached.remove(trial.identifier)
        return test

    def _average(self, trial: Trial, context: TrialContext, state: TrialState, other: TrialRecord) -> TrialScores:
        """Averages an adapter with that of another trial, whose scores and offsets of classes it then has.

        Raises:
            BudgetSpent: its training was cut.
            UserError: the average has no meaning, or is worse than the other one even on rows that it was trained on.
        """
        if state.progress.stopped == "budget":
            raise BudgetSpent("the budget was spent before the second run came to its end.")
        average_with(state.adapter, self.driver.folder(other.id) / "adapter", other.class_offsets, context.backbone)
        validation = other.validation or ValidationResult()
        with (
            self.ledger.book("evaluate", trial=trial.identifier, method=trial.variant.group),
            self.limits.until_spent(trial, "before the evaluation of the average had ended"),
        ):
            rows, batch_size = context.splits.validation[: validation.examples], self.settings.evaluation.batch_size
            now = context.evaluate(trial.identifier, trial.variant.build(), rows, trial.seed, False, batch_size)
        # These rows were trained on, so the average should only gain on them: one that lost was between two different minima.
        if now.score < (validation.score or 0.0):
            raise UserError(
                f"the average scores {numbers.score(now.score)} where {other.trial.label} alone scores "
                f"{numbers.score(validation.score)}."
            )
        return TrialScores(validation, None, other.class_offsets)

    def _class_offsets(
        self, trial: Trial, context: TrialContext, state: TrialState, validation: Evaluation
    ) -> HeldOutOffsets | None:
        """Offsets of classes, where the study wants them and held-out rows gain by them."""
        labels, metric = context.task.labels, context.task.metric
        chosen_by = self.settings.training.class_offsets
        wanted = chosen_by == "training_rows" or (chosen_by == "validation" and counts_rare_classes(metric))
        if not wanted or processes().size > 1 or not has_offsets(state.adapter, context.backbone):
            return None
        rows = [row for row in validation.predictions if row.probabilities is not None and row.expected in labels]
        if len(rows) < LEAST_FOR_OFFSETS:
            return None
        scored, expected = _log_probabilities(rows, labels), [labels.index(row.expected) for row in rows]
        if chosen_by == "training_rows":
            batch_size = self.settings.evaluation.batch_size
            few = context.splits.train[:CALIBRATION_ROWS]
            asked = context.evaluate(trial.identifier, trial.variant.build(), few, trial.seed, False, batch_size)
            chosen = prior_offsets(_log_probabilities(asked.predictions, labels), scored, expected, labels, metric)
        else:
            chosen = held_out_offsets(scored, expected, labels, metric)
        return chosen if chosen.worth_it else None

    def _solve_on_all(self, trial: Trial, context: TrialContext, state: TrialState) -> None:
        """Where what is left pays for it: without it there is an adapter, and after the end of the money none."""
        rows_per_pass = self.settings.training.micro_batch_size or FEATURE_ROWS
        each = max(context.row_costs.seconds_per_validation_row, state.progress.seconds_per_row)
        needed = SOLVE_AGAIN_MARGIN * solve_on_all_seconds(
            state, context.validation, context.backbone, context.features, each
        )
        if (left := self.limits.left(trial)) < needed:
            self.display.note(
                f"{trial.variant.label}: solved without the validation rows, as {numbers.seconds(left)} are left and solving it "
                f"on them too takes about {numbers.seconds(needed)}."
            )
            return
        with self.ledger.book("tune", shares=[Share(trial.identifier, trial.variant.group)]):
            solve_on_all(state, context.validation, context.backbone, context.attached, context.features, rows_per_pass)
        state.progress.on_validation = True


def _log_probabilities(rows: Sequence[Prediction], labels: Sequence[str]) -> torch.Tensor:
    """(rows, labels), from what was predicted for each row."""
    probabilities = torch.tensor([[(row.probabilities or {})[label] for label in labels] for row in rows])
    return probabilities.clamp_min(SMALLEST).log()


def check_score(context: TrialContext, evaluation: Evaluation) -> None:
    """Refuses a score that is none.

    Raises:
        FloatingPointError: with the metric and the number of rows.
    """
    if not math.isfinite(evaluation.score):
        raise FloatingPointError(f"{context.task.metric} is not a number on these {evaluation.examples} test rows.")
