"""What a run costs before and after one of its method was seen, and what is kept for the end."""

from __future__ import annotations

from typing import Any

import pytest
from anytime_by_hand import BETWEEN, END_SECONDS, FIRST_STEP, SCORED, probed, steps_of, with_main

from dollartune.methods.registry import reference


def test_a_first_run_is_as_long_as_the_money_by_what_rows_take_forwards(by_hand: Any) -> None:
    seconds = 10.0
    hand = probed(by_hand, 1.0 + seconds + END_SECONDS + BETWEEN)
    main = hand.next()
    assert steps_of(main) == int((seconds - SCORED - 0.25) / (1.08 * FIRST_STEP))
    assert main.trials[0].length == "money"


def test_a_step_takes_longer_the_more_numbers_are_trained(by_hand: Any) -> None:
    seconds = 10.0
    hand = by_hand(1.0 + seconds + END_SECONDS + BETWEEN)
    hand.ran(hand.next(), 0.5, 1.0, parameters=10_000_000)
    step = FIRST_STEP + 1.7e-9 * 10_000_000
    assert steps_of(hand.next()) == int((seconds - SCORED - 0.25) / (1.08 * step))


def test_rows_that_take_no_time_on_the_clock_are_affordable(by_hand: Any) -> None:
    assert steps_of(probed(by_hand, 20.0, row_seconds=0.0).next()) == 200


def test_upper_layers_that_were_not_seen_yet_have_time_for_what_lies_below_them(by_hand: Any) -> None:
    upper = reference("upper_layers").name
    hand = with_main(by_hand, 60.0, 175, methods=("linear_probe", "full", upper))
    setting = hand.next()
    assert (setting.trials[0].variant.group, steps_of(setting)) == (upper, 200)
    features = 0.6 * 1000 * 0.001
    expected = 200 * 1.08 * 0.55 * FIRST_STEP + features + SCORED + 0.25
    assert setting.limit_seconds == pytest.approx(2 * expected, rel=0.01)


def test_a_twentieth_of_the_money_is_kept_for_test_rows(by_hand: Any) -> None:
    hand = probed(by_hand, 14.0, test=20_000)
    allowed = hand.ran(hand.next(), 0.8, 10.0, 200)
    # 700 rows of a millisecond are a twentieth of 14 s; evaluating them is reserved with its margin
    assert allowed == pytest.approx(14.0 - 1.0 - (1.25 * 0.7 + 0.25))
