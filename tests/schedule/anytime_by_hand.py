"""The anytime scheduler driven by hand: what it says next, after runs that are made up.

1,000 rows, batches of 10 and two epochs: a pass over the rows is 100 steps, and 200 are useful.
"""

from __future__ import annotations

from typing import Any

from pretend import Clock

from dollartune.engines.base import Cohort, EvaluationCost
from dollartune.engines.display import Display
from dollartune.schedule.anytime import AnytimeScheduler
from dollartune.study.api import Study
from dollartune.study.runner import StudyRunner
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import RECORD_VERSION, Cost, record_of

END_SECONDS = 1.25 * 200 * 0.001 + 0.25
"""Of evaluating 200 test rows of a millisecond each, and writing."""
SCORED = 1.25 * 100 * 0.001
"""Of a run of a method that was not seen before: its 100 validation rows."""
BETWEEN = 0.3
FIRST_STEP = 3.5 * 10 * 0.001
"""Seconds of a step of ten rows before any was seen."""


class ByHand:
    """One cell's scheduler, whose runs take and bring what the test says."""

    def __init__(self, settings: dict[str, Any], row_seconds: float, test: int) -> None:
        study = Study(settings)
        study.store.create("{}", [])
        runner = StudyRunner(study.settings, study.store, Display())
        self.ledger, self.clock = runner.ledger, Clock()
        self.ledger.clock = self.clock
        (self.scheduler,) = runner.scheduler.schedulers  # type: ignore[attr-defined]
        assert isinstance(self.scheduler, AnytimeScheduler)
        self.costs = EvaluationCost(test, 100, row_seconds, row_seconds)
        self.scheduler.begin(1.0)

    def next(self) -> Cohort:
        (cohort,) = self.scheduler.next_cohorts(1)
        return cohort

    @property
    def over(self) -> bool:
        """Whether nothing more is trained."""
        cohorts = self.scheduler.next_cohorts(1)
        return not cohorts or cohorts[0].purpose == "evaluate"

    def ran(
        self, cohort: Cohort, score: float, seconds: float, steps: int = 0, best: int | None = None,
        curve: tuple[tuple[int, float], ...] = (), after: float = 0.1, parameters: int = 20_000, rows: int = 1000,
        rows_share: float | None = None,
    ) -> float:  # fmt: skip
        """Books a run and tells the scheduler of it; returns the seconds that it was allowed."""
        (trial,) = cohort.trials
        allowed = self.scheduler.time_limit(cohort, self.costs).seconds
        with self.ledger.book("tune", trial=trial.identifier):
            self.clock.now += seconds
        training = {
            "stopped": "finished" if rows_share is None else "budget", "rows_share": rows_share,
            "best_validation_loss": 1 - score, "seconds": seconds - after, "steps": steps,
            "best_step": steps if best is None else best,
            "history": [{"epoch": 0.0, "step": step, "seconds": 0.0, "train_loss": 1.0, "validation_loss": loss}
                        for step, loss in curve],
        }  # fmt: skip
        record = {
            "version": RECORD_VERSION, "id": trial.identifier, "trial": trial.to_json(), "metric": "accuracy", "status": "tried",
            "validation": {"score": score, "examples": 100, "standard_error": 0.02}, "training": training,
            "parameters": {"total": parameters}, "data": {"train": rows, "validation": 100, "test": self.costs.test_rows},
            "cost": {"seconds": seconds, "dollars": 0.0, "price_per_hour": 0.0},
        }  # fmt: skip
        self.scheduler.done(trial, record_of(record))
        return allowed

    def failed(self, cohort: Cohort, kind: str, seconds: float) -> None:
        """Books a run that breaks, and tells the scheduler of it."""
        (trial,) = cohort.trials
        self.scheduler.time_limit(cohort, self.costs)
        with self.ledger.book("tune", trial=trial.identifier):
            self.clock.now += seconds
        self.scheduler.done(trial, failed_record(trial, kind, "it broke", Cost(seconds=seconds)))


def probed(by_hand: Any, seconds: float | None, rows: int = 1000, **given: Any) -> ByHand:
    """After a probe of one second that scored 0.5."""
    hand = by_hand(seconds, **given)
    hand.ran(hand.next(), 0.5, 1.0, rows=rows)
    return hand


def with_main(by_hand: Any, left: float, best: int, methods: Any = ("linear_probe", "full")) -> ByHand:
    """After the strongest method's 200 steps of 0.1 s, with so much left for further training."""
    hand = probed(by_hand, 1.0 + 20.0 + left + END_SECONDS + BETWEEN, methods=methods)
    main = hand.next()
    assert steps_of(main) == 200
    hand.ran(main, 0.8, 20.0, 200, best)
    return hand


def steps_of(cohort: Cohort) -> int:
    steps = cohort.trials[0].steps
    assert steps is not None
    return steps


def averaged(by_hand: Any, left: float, score: float = 0.8) -> ByHand:
    """After 200 steps of 0.1 s over 1,000 rows: over all 1,100 they would be 220."""
    hand = probed(by_hand, 1.0 + 20.0 + left + END_SECONDS + BETWEEN, on_validation=True)
    main = hand.next()
    hand.ran(main, score, 20.0, 200, 190)
    return hand
