"""Score against money as it was spent: the best until then, and what more money would buy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from fabricate import METHODS, MadeStudy, make_study

from dollartune.report.contents import collect
from dollartune.report.score_over_money import MoneyPoint, more_money, score_over_money
from dollartune.study.results import Results
from dollartune.trials.record import BudgetFacts, SearchFacts


def points(*scores: float, error: float = 0.02) -> list[MoneyPoint]:
    """One after each second; an hour costs 3,600 dollars."""
    return [
        MoneyPoint("task|", "lora", 0, float(at), float(at), score, max(scores[:at]), error)
        for at, score in enumerate(scores, 1)
    ]


def test_money_grows_and_the_best_never_falls(tmp_path: Path) -> None:
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[:3], rows=40))
    found = score_over_money(results.store, results.everything)
    assert len(found) == len([record for record in results.records if record.validation_score is not None])
    for before, after in itertools.pairwise(found):
        assert before.seconds < after.seconds
        assert before.dollars < after.dollars
        assert before.best <= after.best
    assert found[-1].best == max(one.score for one in found)


@pytest.mark.parametrize(
    ("scores", "gain"),
    [
        ((0.5, 0.6, 0.6, 0.65), "0.025"),  # 0.1, then 0.05: a half of it next
        ((0.5, 0.52, 0.5, 0.6), "0.080"),  # it does not grow
        ((0.5, 0.5, 0.5, 0.6), "0.050"),  # from nothing to something: half of it
    ],
)
def test_the_gain_of_a_doubling_falls_as_it_fell(scores: tuple[float, ...], gain: str) -> None:
    said = more_money(points(*scores), priced=True)
    assert said is not None
    assert f"expected to buy about {gain}" in said
    assert "$2.00" in said
    assert "than the standard error of a score, 0.020" in said


def test_what_stands_still_is_expected_to_stay() -> None:
    said = more_money(points(0.5, 0.6, 0.6, 0.6), priced=False)
    assert said is not None
    assert "not expected to raise it" in said
    assert "$" not in said
    assert more_money(points(0.5, 0.6), priced=False) is None


def test_where_the_first_trial_took_most_of_the_money_nothing_is_said() -> None:
    """What the first half of it alone would have bought is not known."""
    late = [replace(one, seconds=one.seconds + 10, dollars=one.dollars + 10) for one in points(0.5, 0.6, 0.6, 0.65)]
    assert more_money(late, priced=True) is None


def test_what_another_task_took_is_not_this_ones_money(tmp_path: Path) -> None:
    """The money of a task is what its trials were booked for, and a half of what both share, whichever comes first."""
    methods = METHODS[:3]
    results = make_study(tmp_path / "study", MadeStudy(methods=methods, tasks=("first", "second"), rows=40))
    everything = score_over_money(results.store, results.everything)
    for task in ("first", "second"):
        (*_, last) = [one for one in everything if one.board.startswith(f"{task}|")]
        own = sum(record.cost.seconds for record in results.records if record.trial.task == task)
        assert last.seconds == pytest.approx(own + 3.0 / 2)
        assert last.dollars == pytest.approx(last.seconds * 2.9 / 3600)


@pytest.mark.parametrize(
    ("scores", "said"), [((0.5, 0.5, 0.5, 0.98), "buy about 0.020"), ((0.5, 0.6, 0.8, 1.0), "not expected")]
)
def test_no_money_buys_more_than_a_perfect_score(scores: tuple[float, ...], said: str) -> None:
    assert said in (more_money(points(*scores), priced=True) or "")


def test_what_more_money_buys_is_told_where_it_goes_to_what_promises_most(tmp_path: Path) -> None:
    """Where each method has its own, the later half of the money is the later methods."""
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[1:4], rows=40))
    board = collect(results).boards[0]
    assert more_money(score_over_money(results.store, results.everything), priced=True) is not None
    assert collect(results).more_money(board) is None, "nothing was searched"

    def told(per: str) -> str | None:
        for record in results.records:
            facts = record.with_facts(search=SearchFacts(tried=3), budget=BudgetFacts(dollars=1.0, per=per))
            results.store.write(record.id, facts, ())
        contents = collect(Results(results.store))
        return contents.more_money(contents.boards[0])

    assert told("method") is None
    assert "as much again" in (told("study") or "")


def test_baselines_are_nothing_that_money_bought() -> None:
    trained = points(0.5, 0.6, 0.6, 0.65)
    before = replace(trained[0], label="tfidf", seconds=0.5, dollars=0.5, score=0.9, best=0.9, baseline=True)
    assert more_money([before, *trained], priced=True) == more_money(trained, priced=True)
