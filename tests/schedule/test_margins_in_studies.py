"""Margins and patiences of the schedulers in whole studies, with a clock that passes only when someone says so."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pretend import TEN_SECONDS, Pretended, learning_rate

from dollartune.planner.trial_cost import TrialCost
from dollartune.trials.trial import Trial


@pytest.fixture
def searched(study_of: Any) -> Any:
    """A study of one method that searches; keyword arguments change it."""

    def settings(**changes: Any) -> dict[str, Any]:
        evaluation = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False}
        whole = {"methods": ["lora"], "seeds": 3, "search": True, "keep_adapters": "none", "evaluation": evaluation}
        return study_of(**{**whole, "budget": {"seconds": 100.0, "per": "method"}, **changes})

    return settings


class Slowness:
    """How many times longer than measured each trial takes, in the order in which they are run; the last goes on."""

    def __init__(self, *factors: float) -> None:
        self.factors: Iterator[float] = itertools.chain(factors, itertools.repeat(factors[-1]))

    def __call__(self, trial: Trial) -> float:
        return next(self.factors)


def search_trials(run: Pretended) -> list[Trial]:
    return [trial for cohort in run.engine.cohorts if cohort.purpose == "search" for trial in cohort.trials]


# Patience


def test_a_search_trial_may_take_twice_as_long_as_expected_and_no_more_than_two_and_a_half_times(searched: Any) -> None:
    settings = searched(search={"trials": 6, "pruner": "none"}, budget={"seconds": 1000.0, "per": "method"})
    run = Pretended(settings, lambda trial: 0.8, slow=Slowness(1, 1, 2.2, 1, 20, 1))
    trials = search_trials(run)
    records = [run.study.store.read(trial.identifier) for trial in trials[2:5]]
    assert records[0].training is not None
    assert records[0].training.stopped == "finished"
    slow = records[2]
    assert slow.training is not None
    assert slow.training.stopped == "budget"
    expected = TEN_SECONDS.tried(trials[4].fraction)
    # the trial's own evaluation, twenty times as long as measured, is not cut: it is what remains of the excess
    assert 2.3 * expected < slow.training.seconds + 20 * TEN_SECONDS.try_seconds * 1.3 < 2.7 * expected + 1


# How many settings


def test_a_search_ends_after_fifty_settings_or_twelve_where_nothing_limits_it(searched: Any) -> None:
    quick = TrialCost(20, 0.001, 1.0, 0.0, 0.001, 0.001)
    rich = Pretended(searched(budget={"seconds": 1000.0, "per": "method"}), learning_rate, trial_cost=quick)
    assert len(search_trials(rich)) == 50
    assert len(search_trials(Pretended(searched(name="free", budget=None), learning_rate))) == 12


def test_a_race_begins_with_four_settings_of_each_method(searched: Any) -> None:
    settings = searched(methods=["lora", "bitfit"], budget={"seconds": 5000.0, "per": "study"})
    run = Pretended(settings, learning_rate)
    first_rung = [
        trial for trial in search_trials(run) if trial.fraction == min(t.fraction for t in search_trials(run))
    ]
    assert len(first_rung) == 8


def test_a_tie_is_given_twice_the_seeds(searched: Any) -> None:
    settings = searched(methods=["lora", "bitfit"], seeds=3, budget={"seconds": 20_000.0, "per": "study"})
    run = Pretended(settings, lambda trial: 0.8 + 0.01 * (trial.seed % 2) * (trial.variant.group == "lora"))
    assert max(trial.seed for trial in run.runner.finals) == 5


def test_what_pays_for_no_race_is_a_quarter_of_the_shortest_run(searched: Any) -> None:
    run = Pretended(searched(budget={"seconds": 3.0, "per": "study"}), learning_rate)
    (final,) = run.runner.finals
    assert final.fraction == pytest.approx(TEN_SECONDS.least / 4)


# Dividing again


@pytest.mark.parametrize(
    ("slowness", "after"),
    [
        ((0.4,), 1),
        ((1.0, 0.3, 0.3, 0.3), 3),
        ((1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.2), 6),
    ],
)
def test_a_search_whose_trials_are_cheaper_than_measured_begins_again_with_longer_ones(
    searched: Any, slowness: Sequence[float], after: int
) -> None:
    settings = searched(search={"pruner": "none"}, budget={"seconds": 60.0, "per": "method"})
    run = Pretended(settings, learning_rate, slow=Slowness(*slowness))
    fractions = [trial.fraction for trial in search_trials(run)]
    assert next(len(list(group)) for _, group in itertools.groupby(fractions)) == after
    assert fractions[after] > 1.3 * fractions[0]


@pytest.mark.parametrize(("slow", "again"), [(0.85, False), (0.6, True)])
def test_a_search_does_not_begin_again_for_a_little(searched: Any, slow: float, again: bool) -> None:
    settings = searched(search={"pruner": "none"}, budget={"seconds": 60.0, "per": "method"})
    run = Pretended(settings, learning_rate, slow=slow)
    assert (len({trial.fraction for trial in search_trials(run)}) > 1) == again


@pytest.mark.parametrize(("slow", "factor"), [(0.001, 0.05), (0.5, 0.5), (3.0, 3.0), (50.0, 4.0)])
def test_an_odd_trial_does_not_decide_about_all_the_money(searched: Any, slow: float, factor: float) -> None:
    settings = searched(search={"trials": 2, "pruner": "none"}, budget={"seconds": 10_000.0, "per": "method"})
    run = Pretended(settings, learning_rate, slow=Slowness(slow))
    (scheduler,) = run.runner.scheduler.schedulers  # type: ignore[attr-defined]
    assert scheduler._cost().final_seconds == pytest.approx(factor * TEN_SECONDS.final_seconds)
