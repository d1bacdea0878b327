"""Short runs first where the money pays for many: which, how long, in which order, and what a kill leaves."""

from __future__ import annotations

from typing import Any

import pytest
from anytime_by_hand import ByHand, steps_of, with_main

from dollartune.errors import UserError
from dollartune.schedule.rungs import MANY_RUNS, Rungs

METHODS = ("linear_probe", "full", "lora", "bitfit")
WHOLE = 20.0
"""Seconds of a whole run: 200 steps of 0.1 s."""


def after_main(by_hand: Any, runs: float, methods: Any = METHODS) -> ByHand:
    """With money for so many more whole runs of the strongest method."""
    # steps that were seen cost 1.08 times as much in plans, and each run a quarter of a second beside them
    return with_main(by_hand, runs * 1.08 * WHOLE + 0.3, 100, methods)


def test_many_runs_begin_with_a_third_of_each_setting(by_hand: Any) -> None:
    hand = after_main(by_hand, 1.2 * MANY_RUNS)
    first = hand.next()
    # a ninth of 200 steps would be less than three tenths of a pass over the rows
    assert steps_of(first) == 67
    assert "33% of a whole run" in first.why
    # methods at their rules' rates come before other rates of the first one
    assert first.trials[0].variant.group == "lora"


def test_few_runs_are_whole_ones(by_hand: Any) -> None:
    hand = after_main(by_hand, 0.8 * MANY_RUNS)
    assert steps_of(hand.next()) == 200
    assert hand.scheduler.state.rungs is None


def test_few_settings_are_tried_one_by_one(by_hand: Any) -> None:
    hand = after_main(by_hand, 2 * MANY_RUNS, ("linear_probe", "full"))  # two other rates
    assert steps_of(hand.next()) == 200


def test_the_better_settings_of_the_short_runs_are_trained_whole_and_the_best_is_handed_over(by_hand: Any) -> None:
    hand = after_main(by_hand, 2 * MANY_RUNS)
    scores = {"lora": 0.9, "bitfit": 0.3, "full": 0.4}
    seen: list[tuple[str, int]] = []
    while not hand.over:
        cohort = hand.next()
        group = cohort.trials[0].variant.group
        seen.append((group, steps_of(cohort)))
        steps = steps_of(cohort)
        hand.ran(cohort, scores[group] + steps / 10_000, steps * 0.1, steps, steps // 2)
    short = [group for group, steps in seen if steps == 67]
    whole = [group for group, steps in seen if steps == 200]
    assert {"lora", "bitfit", "full"} == set(short)
    assert whole
    assert whole[0] == "lora"
    assert hand.scheduler.finals[0].variant.group == "lora"
    assert hand.scheduler.cost.left() >= 0


def test_a_killed_race_goes_on_with_the_run_that_it_would_have_made(by_hand: Any) -> None:
    hand = after_main(by_hand, 2 * MANY_RUNS)
    for score in (0.7, 0.5, 0.6):
        cohort = hand.next()
        hand.ran(cohort, score, 6.7, 67, 60)
    scheduler = hand.scheduler
    state = scheduler.state.rungs
    assert state is not None
    again = Rungs(state, scheduler.history, 30)
    expected = again.next()
    assert expected is not None
    assert (expected[0].method, expected[2]) == (hand.next().trials[0].variant.group, steps_of(hand.next()))


def test_runs_of_another_race_are_refused(by_hand: Any) -> None:
    hand = after_main(by_hand, 2 * MANY_RUNS)
    hand.ran(hand.next(), 0.7, 6.7, 67, 60)
    state = hand.scheduler.state.rungs
    assert state is not None
    state.settings.reverse()
    with pytest.raises(UserError, match="not those that this race"):
        Rungs(state, hand.scheduler.history, 30).next()
