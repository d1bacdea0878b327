"""Score against money as it was spent: the best until then, and what more money would buy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from fabricate import METHODS, MadeStudy, make_study

from dollartune.report.score_over_money import MoneyPoint, more_money, score_over_money


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


def test_of_a_task_that_came_late_nothing_is_said() -> None:
    """The money before it was another's, and this one has no first half."""
    late = [replace(one, seconds=one.seconds + 10, dollars=one.dollars + 10) for one in points(0.5, 0.6, 0.6, 0.65)]
    assert more_money(late, priced=True) is None
