"""How many test rows a budget pays for: decided once, the same for all methods, by what a row costs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.study_budget import ledger_for
from dollartune.engines.base import EVALUATION_MARGIN, LEAST_TEST_ROWS, Cohort, EvaluationCost
from dollartune.engines.display import Display
from dollartune.planner.trial_cost import TrialCost
from dollartune.study import rows_to_score as module
from dollartune.study.api import Study
from dollartune.study.rows_to_score import SCORING_SHARE, SCORING_SHARE_UNTUNED, RowsToScore
from dollartune.trials.expand import plan

TEST_ROWS = 1000


def deciding(study_of: Any, **changes: Any) -> tuple[RowsToScore, dict[str, Any]]:
    """What decides for a study of two methods and two seeds, and its first trials by method."""
    settings = study_of(**{"methods": ["zero_shot", "lora", "bitfit"], "seeds": 2, **changes})
    study = Study(settings)
    trials, _, _ = plan(study.settings)
    ledger = ledger_for(study.settings, trials, None)
    first = {trial.variant.group: trial for trial in reversed(trials)}
    return RowsToScore(study.settings, study.store, ledger, trials), first


def asked(rows: RowsToScore, trial: Any, seconds_per_row: float | None) -> int | None:
    return scored(rows, trial, seconds_per_row).test_rows


def scored(
    rows: RowsToScore, trial: Any, seconds_per_row: float | None, validation: int = 0, each: float = 0.0,
    purpose: Any = "final",
) -> Cohort:  # fmt: skip
    """A cohort with the rows on which it is scored."""
    return rows.of_cohort(Cohort((trial,), purpose), EvaluationCost(TEST_ROWS, validation, seconds_per_row, each))


def paid(seconds: float, per_row: float, share: float = SCORING_SHARE) -> int:
    return int(share * seconds / EVALUATION_MARGIN / per_row)


def test_a_tuned_trial_puts_its_share_into_rows_and_the_others_get_the_same(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 60.0, "per": "method"})
    # two seeds share a method's minute
    assert asked(rows, first["lora"], 0.02) == paid(30.0, 0.02) < TEST_ROWS
    (note,) = rows.new_notes()
    assert f"the first {paid(30.0, 0.02)} of 1,000 test rows" in note
    # another method's rows cost more: all are compared on the same ones
    assert asked(rows, first["bitfit"], 0.05) == paid(30.0, 0.02)
    assert rows.new_notes() == []


def test_what_tunes_nothing_may_put_nearly_all_into_rows(study_of: Any) -> None:
    rows, first = deciding(study_of, methods=["zero_shot"], seeds=1, budget={"seconds": 20.0, "per": "method"})
    assert asked(rows, first["zero_shot"], 0.05) == paid(20.0, 0.05, SCORING_SHARE_UNTUNED)


@pytest.mark.parametrize("budget", [{"seconds": 60.0, "per": "study"}, {"seconds": 12.0, "per": "trial"}])
def test_one_budget_for_all_is_divided_by_its_trials(study_of: Any, budget: dict[str, Any]) -> None:
    rows, first = deciding(study_of, methods=["lora", "bitfit"], budget=budget)
    each = 15.0 if budget["per"] == "study" else 12.0
    assert asked(rows, first["lora"], 0.01) == paid(each, 0.01)


def test_rows_that_the_money_pays_for_are_all_scored(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 600.0, "per": "method"})
    assert asked(rows, first["lora"], 0.02) is None
    assert rows.new_notes() == []


def test_without_a_limit_or_a_measurement_nothing_is_decided(study_of: Any) -> None:
    rows, first = deciding(study_of)
    assert asked(rows, first["lora"], math.inf) is None
    rows, first = deciding(study_of, budget={"seconds": 1.0, "per": "method"})
    assert asked(rows, first["lora"], None) is None


def test_fewer_rows_than_say_anything_are_not_worth_it(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 1.0, "per": "method"})
    assert asked(rows, first["lora"], 1.0) == LEAST_TEST_ROWS


def test_a_search_plans_with_the_rows_that_are_scored(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 60.0, "per": "method"}, search={"trials": 4})
    cost = TrialCost(100, 0.1, 5.0, 0.1, 2.0, 2.0 + TEST_ROWS * 0.05, TEST_ROWS, 0.05)
    # how many seeds are trained is decided by the search, so one of them is counted on
    scored = paid(60.0, 0.05)
    assert rows.of_cost(first["lora"], cost) == replace(
        cost, final_seconds=pytest.approx(2.0 + scored * 0.05), test_rows=scored
    )


def test_validation_rows_that_cost_as_much_are_cut_to_as_many_for_search_trials_too(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 60.0, "per": "method"})
    # 7.2 s for scores that take 0.1 s a test row and 0.1 a validation row: 36 of each
    tried = scored(rows, first["lora"], 0.1, 200, 0.1, "search")
    assert (tried.test_rows, tried.validation_rows) == (36, 36)
    (note,) = rows.new_notes()
    assert "36 of 1,000 test rows and 36 of 200 validation rows" in note
    assert scored(rows, first["bitfit"], 0.1, 200, 0.1).validation_rows == 36


def test_cheap_validation_rows_are_all_scored_and_paid_for_first(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 60.0, "per": "method"})
    final = scored(rows, first["lora"], 0.02, 200, 0.001)
    assert final.validation_rows is None
    assert final.test_rows == int((SCORING_SHARE * 30.0 / EVALUATION_MARGIN - 0.2) / 0.02)


def test_a_search_plans_with_fewer_validation_rows_too(study_of: Any) -> None:
    rows, first = deciding(study_of, budget={"seconds": 60.0, "per": "method"}, search={"trials": 4})
    cost = TrialCost(100, 0.1, 5.0, 0.1, 20.0, 21.0 + TEST_ROWS * 0.1, TEST_ROWS, 0.1, 200)
    cut = rows.of_cost(first["lora"], cost)
    assert cut.test_rows == 72
    assert cut.try_seconds == pytest.approx(7.2)
    assert cut.final_seconds == pytest.approx(1.0 + 7.2 + 7.2)


def test_what_was_decided_holds_when_the_study_goes_on(study_of: Any) -> None:
    budget = {"seconds": 60.0, "per": "method"}
    rows, first = deciding(study_of, budget=budget)
    before = asked(rows, first["lora"], 0.02)
    again, first = deciding(study_of, budget=budget)
    assert asked(again, first["lora"], 0.001) == before
    # until there is more money, which pays for more rows
    more, first = deciding(study_of, budget={"seconds": 6000.0, "per": "method"})
    assert asked(more, first["lora"], 0.02) is None


@pytest.mark.parametrize("early", [False, True])
def test_what_was_decided_of_a_task_is_found_at_another_place(study_of: Any, early: bool) -> None:
    task = study_of()["task"]
    tasks = [{**task, "name": "cheap" if early else "1"}, {**task, "name": "dear"}]

    def with_tasks(**changes: Any) -> dict[str, Any]:
        return {key: value for key, value in study_of(**changes).items() if key != "task"}

    def scored_rows(tasks: list[Any], seconds_per_row: float) -> dict[str, int | None]:
        settings = with_tasks(methods=["lora"], tasks=tasks, budget={"seconds": 60.0, "per": "method"})
        study = Study(settings)
        trials, _, _ = plan(study.settings)
        rows = RowsToScore(study.settings, study.store, ledger_for(study.settings, trials, None), trials)
        return {trial.task: asked(rows, trial, seconds_per_row * (1 + 9 * (trial.task == "dear"))) for trial in trials}

    before = scored_rows(tasks, 0.02)
    assert len(set(before.values())) == 2
    if early:  # by their places
        (path,) = (Path(with_tasks()["output"]) / "moods" / "searches").glob("*.json")
        state = json.loads(path.read_text())
        state["state"]["by_task"] = {str(at): counts for at, counts in enumerate(state["state"]["by_task"].values())}
        path.write_text(json.dumps(state))
    assert scored_rows(tasks if early else tasks[::-1], 0.001) == before


def test_all_methods_of_a_study_are_scored_on_the_same_rows(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORING_SHARE", 0.0)
    monkeypatch.setattr(module, "SCORING_SHARE_UNTUNED", 0.0)
    monkeypatch.setattr(module, "LEAST_TEST_ROWS", 3)
    notes: list[str] = []
    display = Display()
    display.note = notes.append  # type: ignore[method-assign]
    study = Study(study_of(budget={"seconds": 600.0, "per": "method"}))
    results = study.run(display=display)
    assert {record.trial.group: record.test.examples for record in results.done()} == {"zero_shot": 3, "bitfit": 3}
    assert {record.validation.examples for record in results.done()} == {3}
    assert any("first 3 of 8 test rows" in note for note in notes)
    (comparison,) = results.comparisons.values()
    assert any("Compared on the first 3 test rows" in warning for warning in comparison.warnings)
