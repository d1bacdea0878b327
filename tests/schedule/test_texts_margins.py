"""Tasks whose rows are scored by texts that are written for them: a row takes as long as many steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from anytime_by_hand import steps_of

ROW = 0.06
"""Seconds of a row's score; a step takes 0.1."""


def hand_of(by_hand: Any, seconds: float) -> Any:
    hand = by_hand(seconds, methods=("full", "lora"), row_seconds=ROW)
    hand.costs = replace(hand.costs, validation_rows=400)
    return hand


@pytest.mark.parametrize(("seconds", "rows"), [(60.0, 80), (120.0, 160), (400.0, 400), (5.0, 20)])
def test_runs_are_scored_on_rows_that_a_tenth_of_the_money_pays_for(by_hand: Any, seconds: float, rows: int) -> None:
    hand = hand_of(by_hand, seconds)
    limit = hand.scheduler.time_limit(hand.next(), hand.costs)
    assert limit.validation_rows == rows
    said = f"runs are scored on the first {rows} of 400 validation rows"
    assert (said in " ".join(hand.scheduler.new_notes())) == (rows < 400)


def test_what_is_solved_first_has_all_rows_scored(by_hand: Any) -> None:
    hand = by_hand(60.0, methods=("linear_probe", "full"), row_seconds=ROW)
    hand.costs = replace(hand.costs, validation_rows=400)
    assert hand.scheduler.time_limit(hand.next(), hand.costs).validation_rows == 400


def test_the_early_runs_limit_is_of_its_training(by_hand: Any) -> None:
    hand = hand_of(by_hand, 60.0)
    early = hand.next()
    scored = 1.25 * 80 * ROW + 0.25
    assert hand.scheduler.time_limit(early, hand.costs).seconds == pytest.approx(6.0 + scored)


def test_further_runs_are_as_long_as_steps_say(by_hand: Any) -> None:
    """And not a dozen times shorter, as they would be if a row's score were a pass forwards."""
    hand = hand_of(by_hand, 60.0)
    hand.ran(hand.next(), 0.3, 6.0, 10, after=5.0)  # steps of 0.1 s, and 5 s of scores
    left = 60.0 - 6.0
    main = hand.next()
    assert main.trials[0].variant.group == "full"
    scores = 1.25 * 80 * ROW + 0.25
    tested = min(1.25 * 200 * ROW, 0.05 * 60 * 1.25) + 0.25 + 0.3
    assert steps_of(main) == pytest.approx(min(200, (left - tested - scores) / (1.08 * 0.1)), rel=0.05)
