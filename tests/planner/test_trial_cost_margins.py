"""What a planned trial has in hand: a worker somewhat slower than it was measured still ends it whole."""

from __future__ import annotations

from typing import Any

import pytest
from pretend import TEN_SECONDS, Pretended, learning_rate

from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, EvaluationCost, evaluation_seconds
from dollartune.planner.trial_cost import TrialCost
from dollartune.study_file import load_study

COST = TrialCost(1000, 0.1, 10.0, 0.5, 1.0, 4.0)


@pytest.fixture
def settings() -> StudySettings:
    return load_study({"backbone": "a", "task": "boolq", "methods": ["lora"]})


def test_a_fifth_more_for_evaluating_is_reserved_and_planned(settings: StudySettings) -> None:
    costs = EvaluationCost(300, 100, 0.01, 0.01)
    trial: Any = object()
    reserved = evaluation_seconds(Cohort((trial,)), costs, settings)
    assert 4.0 * 1.2 + 0.2 <= reserved == pytest.approx(4.0 * 1.25 + 0.25)  # a fifth slower, and the record written
    planned = COST.final(1.0) - COST.training(1.0)
    assert planned > reserved * 1.04  # or a trial that was planned is refused for rows 4 % slower than measured
    assert planned == pytest.approx(4.0 * 1.3 + 0.3)
    assert COST.tried(1.0) - COST.training(1.0) == pytest.approx(1.0 * 1.3 + 0.3)


def test_training_is_planned_an_eighth_longer_than_measured() -> None:
    assert COST.training(1.0) == pytest.approx(1.15 * (1000 * 0.1 + 10 * 0.5))


@pytest.mark.parametrize(("slow", "whole"), [(1.13, True), (1.5, False)])
def test_a_worker_that_is_a_tenth_slower_ends_what_was_planned(study_of: Any, slow: float, whole: bool) -> None:
    """Of a budget that is planned to the last second: final trials of a method that has nothing to search."""
    evaluation = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False}
    study = study_of(
        methods=[{"bitfit": {"lr": 0.002}}], seeds=3, search=True, keep_adapters="none", evaluation=evaluation,
        budget={"seconds": 30.0, "per": "method", "reserve": 0.0},
    )  # fmt: skip
    run = Pretended(study, learning_rate, slow=slow)
    stopped = {run.study.store.read(trial.identifier).stopped for trial in run.runner.finals}
    assert (stopped == {"finished"}) == whole
    assert run.seconds() <= 30.0


def test_eight_steps_are_the_least() -> None:
    assert COST.least == pytest.approx(8 / 1000)
    assert TrialCost(4, 0.1, 1.0, 0.0, 1.0, 1.0).least == 1.0
    assert TrialCost(0, 0.0, 0.0, 0.0, 1.0, 1.0).least == 1.0


def test_fractions_are_found_to_a_thousandth_which_is_how_they_stand_in_a_trial_s_name() -> None:
    for seconds in (40.0, 50.0, 60.0, 70.0):
        fraction = COST.longest_final(seconds)
        assert COST.final(fraction) <= seconds < COST.final(fraction + 0.001)
        assert fraction == round(fraction, 3)
    assert TEN_SECONDS.longest_final(1e9) == 1.0
