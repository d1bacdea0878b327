"""Short runs first where the money pays for many: which, how long, in which order, and what a kill leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from anytime_by_hand import BETWEEN, END_SECONDS, ByHand, steps_of, with_main

from dollartune.errors import UserError
from dollartune.schedule.anytime_state import Run
from dollartune.schedule.rungs import Rungs, RungsState

METHODS = ("linear_probe", "full", "lora", "bitfit")
WHOLE = 20.0
"""Seconds of a whole run: 200 steps of 0.1 s."""
SHORT = 50
"""Steps of its first rung."""


def after_main(by_hand: Any, runs: float, methods: Any = METHODS) -> ByHand:
    """With money for so many more whole runs of the strongest method."""
    # steps that were seen cost 1.08 times as much in plans, and each run a quarter of a second beside them
    return with_main(by_hand, runs * 1.08 * WHOLE + 0.3, 100, methods)


def test_many_runs_begin_with_fifty_steps_of_each_setting(by_hand: Any) -> None:
    hand = after_main(by_hand, 3.6)
    first = hand.next()
    assert steps_of(first) == SHORT, "a ninth of 200 steps would tell rates apart alone"
    assert "25 % of a whole run" in first.why
    # methods at their rules' rates come before other rates of the first one
    assert first.trials[0].variant.group == "lora"


def test_few_runs_are_whole_ones(by_hand: Any) -> None:
    hand = after_main(by_hand, 2.4)
    assert steps_of(hand.next()) == 200
    assert hand.scheduler.state.rungs is None


def test_few_settings_are_tried_one_by_one(by_hand: Any) -> None:
    hand = after_main(by_hand, 6.0, ("linear_probe", "full"))  # two other rates
    assert steps_of(hand.next()) == 200
    # the other method, and two other rates of each
    assert steps_of(after_main(by_hand, 6.0, ("linear_probe", "full", "lora")).next()) == SHORT


def test_the_better_settings_of_the_short_runs_are_trained_whole_and_the_best_is_handed_over(by_hand: Any) -> None:
    hand = after_main(by_hand, 6.0)
    scores = {"lora": 0.9, "bitfit": 0.3, "full": 0.4}
    seen: list[tuple[str, int]] = []
    while not hand.over:
        cohort = hand.next()
        group = cohort.trials[0].variant.group
        seen.append((group, steps_of(cohort)))
        steps = steps_of(cohort)
        hand.ran(cohort, scores[group] + steps / 10_000, steps * 0.1, steps, steps // 2)
    short = [group for group, steps in seen if steps == SHORT]
    whole = [group for group, steps in seen if steps == 200]
    assert {"lora", "bitfit", "full"} == set(short)
    assert whole
    assert whole[0] == "lora"
    assert hand.scheduler.finals[0].variant.group == "lora"
    assert hand.scheduler.cost.left() >= 0


def test_a_killed_race_goes_on_with_the_run_that_it_would_have_made(by_hand: Any) -> None:
    hand = after_main(by_hand, 6.0)
    for score in (0.7, 0.5, 0.6):
        cohort = hand.next()
        hand.ran(cohort, score, 5.0, SHORT, 45)
    scheduler = hand.scheduler
    state = scheduler.state.rungs
    assert state is not None
    again = Rungs(state, scheduler.history, 30)
    expected = again.next()
    assert expected is not None
    assert (expected[0].method, expected[2]) == (hand.next().trials[0].variant.group, steps_of(hand.next()))


def test_runs_of_another_race_are_refused(by_hand: Any) -> None:
    hand = after_main(by_hand, 6.0)
    hand.ran(hand.next(), 0.7, 5.0, SHORT, 45)
    state = hand.scheduler.state.rungs
    assert state is not None
    state.settings.reverse()
    with pytest.raises(UserError, match="not those that this race"):
        Rungs(state, hand.scheduler.history, 30).next()


def begun(hand: ByHand, steps: int, seconds: float) -> RungsState:
    """A race of what waits after the main run."""
    scheduler = hand.scheduler
    best = scheduler.history.name(scheduler.history.trained()[0])
    return RungsState.begin(scheduler._untried(), best, steps, seconds, scheduler.cost)


@pytest.mark.parametrize(("whole", "first"), [(440, 50), (460, 51), (101, 50), (99, 99)])
def test_the_shortest_run_of_a_race_has_fifty_steps(by_hand: Any, whole: int, first: int) -> None:
    hand = after_main(by_hand, 2.4)
    job = Rungs(begun(hand, whole, 10_000.0), hand.scheduler.history, 8).next()
    assert job is not None
    assert job[2] == first


def test_all_finalists_are_trained_whole_before_any_gets_another_seed_and_none_gets_more_than_twice_the_studys(
    by_hand: Any,
) -> None:
    hand = after_main(by_hand, 200.0)
    whole: list[tuple[str, int]] = []
    while not hand.over:
        cohort = hand.next()
        (trial,) = cohort.trials
        steps = steps_of(cohort)
        if steps == 200:
            whole.append((trial.variant.label, trial.seed))
        # nothing tells them apart, and each is as likely to be above the others: seeds are added until there are no more
        hand.ran(cohort, 0.9 + 0.02 * ((len(whole) + trial.seed) % 2), steps * 0.1, steps, steps // 2)
    first = [label for label, _ in whole]
    main = hand.scheduler.history.trained()[0]
    settings = set(first) - {hand.scheduler.history.label(main)}
    assert len(settings) > 2
    assert set(first[: len(settings)]) == settings
    assert max(Counter(first).values()) == 4


def scored(hand: ByHand, settings: list[tuple[int, int, int, float]]) -> Run | None:
    """What is handed over of whole runs (which setting, seed, steps, score)."""
    state, history = hand.scheduler.state, hand.scheduler.history
    state.rungs = begun(hand, 200, 1000.0)
    main = history.trained()[0]
    waiting = hand.scheduler._untried()
    outcome = history.outcome(main)
    for number, seed, steps, score in settings:
        run = Run("setting", waiting[number], seed, steps, "")
        state.runs.append(run)
        state.outcomes[history.name(run)] = replace(outcome, score=score, steps=steps)
    return history.choice()


@pytest.mark.parametrize(("lead", "chosen"), [(0.0031, 0), (0.0036, 1)])
def test_two_seeds_that_agree_are_taken_before_one_that_is_higher_by_less_than_luck(
    by_hand: Any, lead: float, chosen: int
) -> None:
    """Of a score's variance of 0.02^2 half is its own, and agreeing seeds make that less: the mean of two is surer by 0.0034."""
    hand = after_main(by_hand, 2.4)
    waiting = hand.scheduler._untried()
    run = scored(hand, [(0, 0, 200, 0.9), (0, 1, 200, 0.9), (1, 0, 200, 0.9 + lead)])
    assert run is not None
    assert run.setting == waiting[chosen]


def test_runs_of_other_lengths_are_no_seeds_of_each_other(by_hand: Any) -> None:
    hand = after_main(by_hand, 2.4)
    scored(hand, [(0, 0, 200, 0.9), (0, 1, 210, 0.9), (0, 0, 400, 0.9)])
    assert sorted(len(runs) for runs in hand.scheduler.history.seed_groups().values())[-2:] == [1, 2]


def test_settings_that_are_too_dear_for_one_whole_run_do_not_race(
    by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = after_main(by_hand, 6.0)
    cost = hand.scheduler.cost
    plain = cost.seconds_of
    monkeypatch.setattr(
        cost, "seconds_of", lambda method, steps: plain(method, steps) * (1 if method == "full" else 100)
    )
    monkeypatch.setattr(
        hand.scheduler,
        "_untried",
        lambda: [s for s in type(hand.scheduler)._untried(hand.scheduler) if s.method != "full"],
    )
    assert hand.over or hand.scheduler.state.rungs is None


# Where nothing can be solved at once


def after_early(by_hand: Any, runs: float, steps: int = SHORT) -> ByHand:
    """After the first adapter's short run, with money for so many whole runs."""
    hand: ByHand = by_hand(0.1 * steps + runs * 1.08 * WHOLE + END_SECONDS + BETWEEN, ("full", "lora", "bitfit"))
    early = hand.next()
    assert steps_of(early) == SHORT
    hand.ran(early, 0.6, 0.1 * steps, steps, steps)
    return hand


def test_without_a_probe_the_race_comes_first_and_takes_the_early_run_for_its_own(by_hand: Any) -> None:
    hand = after_early(by_hand, 4.0)
    seen: list[tuple[str, int]] = []
    while not hand.over:
        cohort = hand.next()
        label, steps = cohort.trials[0].variant.label, steps_of(cohort)
        seen.append((label, steps))
        hand.ran(cohort, 0.5 + steps / 10_000, steps * 0.1, steps, steps // 2)
    early = hand.scheduler.history.label(hand.scheduler.state.runs[0])
    assert seen[0][1] == SHORT
    assert (early, SHORT) not in seen
    assert (early, 200) in seen, "its 0.6 was the highest of the short ones"
    assert hand.scheduler.cost.left() >= 0


def test_an_early_run_that_was_cut_is_run_again_in_the_race(by_hand: Any) -> None:
    hand = after_early(by_hand, 4.0, steps=30)
    early = hand.scheduler.history.label(hand.scheduler.state.runs[0])
    assert hand.next().trials[0].variant.label == early


def test_without_money_for_a_race_the_strongest_method_is_trained_whole(by_hand: Any) -> None:
    hand = after_early(by_hand, 1.9)
    assert hand.next().trials[0].variant.group == "full"
    assert steps_of(hand.next()) >= 200
    assert hand.scheduler.state.rungs is None


def test_a_race_that_was_killed_before_its_first_run_goes_on(by_hand: Any) -> None:
    hand = after_early(by_hand, 4.0)
    first = hand.next()
    hand.scheduler.state.runs.pop()
    assert hand.next().trials == first.trials


@pytest.mark.parametrize(("whole", "finalists"), [(200, 5), (460, 3)])
def test_the_final_has_money_for_each_method_where_no_rung_compares_them(
    by_hand: Any, whole: int, finalists: int
) -> None:
    hand = after_main(by_hand, 2.4, (*METHODS, "houlsby", "ia3"))
    assert Rungs(begun(hand, whole, 10_000.0), hand.scheduler.history, 8).race.finalists == finalists


def test_what_a_run_takes_once_is_not_taken_for_its_steps(by_hand: Any) -> None:
    """Scores after a short run took as long as its steps: a whole run is not four times as dear."""
    hand: ByHand = by_hand(400.0, ("full", "lora", "bitfit"))
    hand.ran(hand.next(), 0.6, 10.0, SHORT, SHORT, after=5.0)
    scheduler = hand.scheduler
    state = RungsState.begin(scheduler._untried(), None, 200, 300.0, scheduler.cost)
    assert state.seconds_of("full", 200) == pytest.approx(0.25 + 5.0 + 1.08 * 20.0)


@pytest.mark.parametrize(("runs", "races"), [(1.96, False), (2.1, True)])
def test_without_a_probe_a_race_needs_money_for_two_whole_runs(by_hand: Any, runs: float, races: bool) -> None:
    hand = after_early(by_hand, runs)
    hand.next()
    assert (hand.scheduler.state.rungs is not None) == races


def test_each_run_of_a_race_tells_what_the_next_ones_take(by_hand: Any) -> None:
    """15 s after the steps, in a run of 50 of them: a whole run is dearer by as much, and not four times."""
    hand = after_main(by_hand, 200.0)
    cohort = hand.next()
    method = cohort.trials[0].variant.group
    hand.ran(cohort, 0.7, 0.1 * SHORT + 15.0, SHORT, SHORT, after=15.0)
    race = hand.scheduler._race
    assert race is not None
    assert race.next() is not None
    assert race._expected.seconds_of(method, 200) == pytest.approx(0.25 + 15.0 + 1.08 * 20.0)


def test_a_race_is_not_settled_before_the_best_has_all_seeds(by_hand: Any) -> None:
    """The highest of many scores is a lucky one as well: of one seed each, these would settle it."""
    hand = after_main(by_hand, 200.0)
    whole: list[tuple[str, int]] = []
    while not hand.over:
        cohort = hand.next()
        (trial,) = cohort.trials
        steps = steps_of(cohort)
        if steps == 200:
            whole.append((trial.variant.label, trial.seed))
        score = 0.7 if steps == SHORT else 0.83 if whole[-1][0] == whole[0][0] else 0.8
        hand.ran(cohort, score, steps * 0.1, steps, steps // 2)
    best, _ = whole[0]
    assert "would not change this" in hand.scheduler.state.ending
    assert [seed for label, seed in whole if label == best] == [0, 1]
