"""Searching inside a budget, with an engine that pretends: what is tried, chosen, spent and resumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pretend import TEN_SECONDS, Pretended, PretendEngine, learning_rate

from dollartune.errors import UserError
from dollartune.planner.trial_cost import TrialCost
from dollartune.study.several import remove_trials
from dollartune.trials.trial import Trial


@pytest.fixture
def searched(study_of: Any) -> Any:
    """A study of three methods that search with a hundred seconds each."""

    def settings(**changes: Any) -> dict[str, Any]:
        whole: dict[str, Any] = {
            "methods": ["zero_shot", "lora", "bitfit"],
            "seeds": 3,
            "search": True,
            "budget": {"seconds": 100.0, "per": "method"},
            "keep_adapters": "none",
        }
        evaluation = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False}
        return study_of(**{**whole, "evaluation": evaluation, **changes})

    return settings


def test_each_method_tries_settings_with_its_own_money_and_runs_the_best_on_every_seed(searched: Any) -> None:
    run = Pretended(searched(), learning_rate)
    for method in ("lora", "bitfit"):
        assert 70 < run.seconds(method) <= 100
        finals = [t for t in run.runner.finals if t.variant.group == method]
        assert sorted(t.seed for t in finals) == [0, 1, 2]
        assert len({t.variant for t in finals}) == 1
        tried = {t.identifier: t for u in run.engine.cohorts if u.purpose == "search" for t in u.trials}
        own = [t for t in tried.values() if t.variant.group == method]
        assert len(own) >= 4
        assert learning_rate(finals[0]) == max(map(learning_rate, own))
        assert {t.seed for t in own} == {0}
    assert run.seconds("zero_shot") < 10
    assert len(run.runner.finals) == 7


def test_money_for_whole_trainings_makes_them_whole_and_less_makes_them_shorter(searched: Any) -> None:
    rich = Pretended(searched(), learning_rate)
    assert {t.fraction for t in rich.runner.finals} == {1.0}
    poor = Pretended(searched(name="poor", budget={"seconds": 30.0, "per": "method"}), learning_rate)
    assert all(0.1 < t.fraction < 0.7 for t in poor.runner.finals if t.trains)
    assert any("of the training on all seeds" in note for note in poor.notes)
    assert poor.seconds("lora") <= 30


def test_what_money_does_not_allow_is_said(searched: Any) -> None:
    run = Pretended(searched(methods=["lora"], budget={"seconds": 6.0, "per": "method"}), learning_rate)
    assert run.seconds() <= 6
    (final, *others) = run.runner.finals
    assert len(others) < 2
    assert any("the budget is too small for a search" in note and "of 3 seeds" in note for note in run.notes)
    record = run.study.store.read(final.identifier)
    assert record.search.seeds < record.search.seeds_wanted == 3


def test_no_money_at_all_is_a_failure_by_name(searched: Any) -> None:
    run = Pretended(searched(methods=["lora"], budget={"seconds": 1.5, "per": "method"}), learning_rate)
    record = run.study.store.read(run.runner.finals[0].identifier)
    assert record.error.kind == "budget"
    assert "evaluating it alone takes" in record.error.message


@pytest.mark.parametrize("slow", [0.5, 1.6, 3.0])
def test_the_promise_is_kept_where_the_machine_is_not_as_fast_as_measured(searched: Any, slow: float) -> None:
    run = Pretended(searched(), learning_rate, slow=slow)
    for method in ("zero_shot", "lora", "bitfit"):
        assert run.seconds(method) <= 100
    assert {t.variant.group for t in run.runner.finals} == {"zero_shot", "lora", "bitfit"}
    done = [run.study.store.read(t.identifier).status for t in run.runner.finals]
    assert done.count("done") >= 5


def test_lists_are_a_grid_and_stated_settings_stay(searched: Any) -> None:
    grid = Pretended(searched(methods=[{"lora": {"rank": [2, 4], "lr": [1e-3, 3e-4]}}]), learning_rate)
    assert len(set(grid.labels("search"))) == 4
    assert {t.variant.build()[0].config.lr for t in grid.runner.finals} == {3e-4}
    stated = Pretended(searched(name="stated", methods=[{"lora": {"lr": 0.002}}]), learning_rate)
    tried = [t.variant.build()[0].config for u in stated.engine.cohorts for t in u.trials]
    assert {config.lr for config in tried} == {0.002}
    assert {config.rank for config in tried} == {2, 4, 8, 16, 32}  # the backbone is 32 wide
    nothing = Pretended(searched(name="nothing", methods=[{"bitfit": {"lr": 0.002}}]), learning_rate)
    assert nothing.labels("search") == []
    assert any("has no settings to search" in note for note in nothing.notes)


def test_trials_and_no_budget(searched: Any) -> None:
    run = Pretended(searched(methods=["lora", "bitfit"], budget=None, search=5), learning_rate)
    assert len(run.labels("search")) == 10
    assert len(run.runner.finals) == 6
    with pytest.raises(UserError, match="too few"):
        Pretended(searched(search=0), learning_rate)


def test_several_cells_share_a_methods_money(searched: Any) -> None:
    run = Pretended(
        searched(methods=["lora"], scales=[8, 16], budget={"seconds": 200.0, "per": "method"}), learning_rate
    )
    cost: dict[int | None, float] = {}
    for record in run.study.store.records():
        scale = record.trial.scale
        cost[scale] = cost.get(scale, 0.0) + record.cost.seconds
    assert 75 < cost[8] <= 100
    assert 75 < cost[16] <= 125
    assert run.seconds() <= 200


@pytest.mark.parametrize("after", [0, 3, 7, 12, 15])
@pytest.mark.parametrize("per", ["method", "study"])
def test_a_killed_search_goes_on_with_the_same_settings(
    searched: Any, unbroken: dict[str, Pretended], after: int, per: str
) -> None:
    settings = searched(budget={"seconds": 100.0 if per == "method" else 250.0, "per": per})
    if per not in unbroken:
        unbroken[per] = Pretended({**settings, "name": "whole"}, learning_rate)
    whole = unbroken[per]
    first = Pretended({**settings, "name": "killed"}, learning_rate, break_after=after)
    assert first.killed
    second = Pretended({**settings, "name": "killed"}, learning_rate, at=first.clock.now)
    for purpose in ("search", "final"):
        both = [*first.labels(purpose), *second.labels(purpose)]
        assert list(dict.fromkeys(both)) == list(dict.fromkeys(whole.labels(purpose)))
    assert [t.identifier for t in second.runner.finals] == [t.identifier for t in whole.runner.finals]
    assert second.seconds() == pytest.approx(whole.seconds(), abs=0.5)
    lines = [json.loads(line) for line in second.study.store.ledger.read_text().splitlines()]
    booked = [(line["session"], line["number"]) for line in lines if "number" in line]
    assert len(booked) == len(set(booked))
    third = Pretended({**settings, "name": "killed"}, learning_rate, at=second.clock.now)
    assert third.engine.cohorts == []
    assert [t.identifier for t in third.runner.finals] == [t.identifier for t in whole.runner.finals]


def test_more_money_searches_on(searched: Any) -> None:
    poor = Pretended(searched(methods=["lora"], budget={"seconds": 30.0, "per": "method"}), learning_rate)
    rich = Pretended(
        searched(methods=["lora"], budget={"seconds": 200.0, "per": "method"}), learning_rate, at=poor.clock.now
    )
    assert rich.labels("final")
    assert {t.fraction for t in rich.runner.finals} == {1.0}
    assert poor.seconds() < rich.seconds() <= 200


def test_a_race_keeps_to_one_sum_and_finds_the_best_method(searched: Any) -> None:
    settings = searched(methods=["lora", "bitfit", "ia3", "full"], budget={"seconds": 300.0, "per": "study"})
    run = Pretended(settings, learning_rate)
    assert run.seconds() <= 300
    finals = run.runner.finals
    best = max(finals, key=lambda trial: run.study.store.read(trial.identifier).validation_score)
    assert best.variant.group == "lora"
    seeds: dict[Any, set[int]] = {}
    for trial in finals:
        seeds.setdefault(trial.variant, set()).add(trial.seed)
    assert all(len(own) >= 3 for own in seeds.values())
    assert len(seeds) <= 6
    (said,) = [note for note in run.notes if "trained to the end" in note]
    assert "too small" not in said, said


@pytest.mark.parametrize("seconds", [3.0, 10.0, 30.0, 90.0])
@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_a_race_of_any_size_keeps_its_promise_and_ends_with_a_word(searched: Any, seconds: float, slow: float) -> None:
    run = Pretended(searched(budget={"seconds": seconds, "per": "study"}), learning_rate, slow=slow)
    assert run.seconds() <= seconds * 1.02 + 3  # measuring the three trial_costs cannot be known before
    assert run.runner.finals
    assert all(run.study.store.has(trial.identifier) for trial in run.runner.finals)


class Unmeasurable(PretendEngine):
    """No method's speed can be measured."""

    def measure(self, trial: Trial) -> TrialCost:
        raise UserError("the budget was used up")


def test_a_race_that_no_method_can_join_is_told_in_words_of_the_study(searched: Any) -> None:
    run = Pretended(searched(budget={"seconds": 30.0, "per": "study"}), learning_rate, engine=Unmeasurable)
    assert any("skipped: its speed could not be measured" in note for note in run.notes)
    assert any("the budget is too small to compare methods" in note for note in run.notes)
    assert not any("successive halving" in note for note in run.notes)


def test_a_setting_that_breaks_does_not_win(searched: Any) -> None:
    def broken(trial: Trial) -> float:
        score = learning_rate(trial)
        return score if trial.variant.build()[0].config.lr < 1e-3 else 0.0

    run = Pretended(searched(methods=["lora"]), broken)
    assert run.runner.finals[0].variant.build()[0].config.lr < 1e-3


def test_a_slow_method_is_not_searched_on_the_finals_money(searched: Any) -> None:
    slow = TrialCost(
        steps=400, seconds_per_step=0.5, validations=5, seconds_per_validation=0.0, try_seconds=1, final_seconds=3
    )
    run = Pretended(searched(methods=["lora"]), learning_rate, trial_cost=slow)
    assert run.seconds() <= 100
    finals = [run.study.store.read(t.identifier) for t in run.runner.finals]
    assert len(finals) == 3
    assert all(record.training.stopped == "finished" for record in finals)


def test_pace_fits_its_own_predictions() -> None:
    for seconds in (3.0, 5.0, 9.0):
        fraction = TEN_SECONDS.longest_final(seconds, 0.15)
        assert TEN_SECONDS.final(fraction, 0.15) <= seconds
        assert TEN_SECONDS.final(fraction + 0.002, 0.15) > seconds


def test_a_trial_that_is_run_again_costs_what_its_last_run_took(searched: Any) -> None:
    """Of a setting that was tried at full length the first seed is trained again for the test rows."""
    settings = searched(budget=None, methods=["lora"], search={"trials": 3})
    run = Pretended(settings, learning_rate)
    tried = {t.identifier for cohort in run.engine.cohorts if cohort.purpose == "search" for t in cohort.trials}
    again = [t for t in run.runner.finals if t.identifier in tried]
    assert again
    booked = run.runner.ledger.totals()
    for trial in run.runner.finals:
        assert booked.by_trial[trial.identifier] == pytest.approx(run.study.store.read(trial.identifier).cost.seconds)
    assert booked.by_method["lora"] > sum(booked.by_trial.values()), "the account keeps all of it"
    # a trial that was removed
    remove_trials(run.study.store, [again[0].identifier])
    second = Pretended(settings, learning_rate, at=run.clock.now)
    cost = second.study.store.read(again[0].identifier).cost.seconds
    assert second.runner.ledger.totals().by_trial[again[0].identifier] == pytest.approx(cost)


def test_what_goes_on_from_a_checkpoint_costs_what_it_took_before_too(searched: Any) -> None:
    settings = searched(budget=None, methods=["lora"], search=False, seeds=1)
    run = Pretended(settings, learning_rate)
    (trial,) = run.runner.finals
    once = run.study.store.read(trial.identifier).cost.seconds
    checkpoint = run.study.store.folder(trial.identifier) / "checkpoint"
    for there, seconds in ((True, 2 * once), (False, once)):
        run.study.store.forget(trial.identifier)
        if there:
            checkpoint.mkdir()
            (checkpoint / f"{trial.identifier}.json").write_text("{}")
        again = Pretended(settings, learning_rate, at=run.clock.now)
        assert again.runner.ledger.totals().by_trial[trial.identifier] == pytest.approx(seconds)
        assert not checkpoint.exists(), "a study that is finished keeps none"
