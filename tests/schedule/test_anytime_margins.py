"""Every factor and limit by which the anytime scheduler decides, driven by hand: what it says next, after runs that are made up.

1,000 rows, batches of 10 and two epochs: a pass over the rows is 100 steps, and 200 are useful.
"""

from __future__ import annotations

from typing import Any

import pytest
from anytime_by_hand import BETWEEN, END_SECONDS, FIRST_STEP, SCORED, averaged, probed, steps_of, with_main

from dollartune.methods.registry import reference
from dollartune.planner.trial_cost import TrialCost
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import Cost
from dollartune.trials.trial import Trial

# The first adapter


def test_without_a_probe_the_first_run_gets_a_tenth_of_the_money_and_a_quarter_of_the_useful_steps(
    by_hand: Any,
) -> None:
    first = by_hand(100.0, methods=["full"]).next()
    assert first.limit_seconds == pytest.approx(10.0)
    assert steps_of(first) == 50, "as many rows as a study has that says nothing of them: a thousand"


# The strongest method's first run


def test_an_average_takes_four_tenths_of_the_passes_at_least_and_as_many_at_most(by_hand: Any) -> None:
    assert averaged(by_hand, 0.25 + 86 * 0.108).over
    second = averaged(by_hand, 0.25 + 90.5 * 0.108).next()
    assert second.trials[0].averaged_with is not None
    assert steps_of(second) == 90
    assert steps_of(averaged(by_hand, 0.25 + 290 * 0.108).next()) == 220


def test_an_average_is_taken_before_a_probe_that_is_half_a_point_better_at_most(by_hand: Any) -> None:
    lower = averaged(by_hand, 25.0, score=0.4945)
    assert lower.over or lower.next().trials[0].averaged_with is None
    hand = averaged(by_hand, 25.0, score=0.4955)
    second = hand.next()
    assert second.trials[0].averaged_with is not None
    hand.ran(second, 0.4955, 22.0, 220)
    assert hand.next().trials == second.trials, "its test rows"


def test_nothing_is_kept_for_an_average_that_does_not_fit(by_hand: Any) -> None:
    """86 steps are too few for one, and enough for another rate of a method that needed 110."""
    hand = probed(by_hand, 1.0 + 20.0 + 0.25 + 86 * 0.108 + END_SECONDS + BETWEEN, on_validation=True)
    hand.ran(hand.next(), 0.8, 20.0, 200, 100)
    (trial,) = hand.next().trials
    assert (trial.averaged_with, trial.variant.group) == (None, "full")


def test_an_average_that_failed_is_not_tried_again(by_hand: Any) -> None:
    hand = averaged(by_hand, 100.0)
    while (second := hand.next()).trials[0].averaged_with is None:
        hand.ran(second, 0.7, 10.0, 200, 190)
    hand.scheduler.done(second.trials[0], failed_record(second.trials[0], "bad_input", "no adapter", Cost()))
    assert hand.over
    assert hand.scheduler.finals[0].averaged_with is None


def test_a_first_run_leaves_what_an_average_needs(by_hand: Any) -> None:
    """1.4 times the useful length is enough for two runs; the first may not take more than its part, however slow it is."""
    seconds = 1.5 * 200 * 1.08 * FIRST_STEP + SCORED + 0.25
    hand = probed(by_hand, 1.0 + seconds + END_SECONDS + BETWEEN, on_validation=True)
    main = hand.next()
    assert (steps_of(main), main.trials[0].length) == (200, "at_most")
    assert main.limit_seconds == pytest.approx(seconds / 1.4)
    assert averaged(by_hand, 25.0).next().trials[0].averaged_with, (
        "another setting is not tried with what the average needs"
    )


def test_the_solved_probe_stays_where_less_than_three_tenths_of_a_pass_over_the_rows_fit(by_hand: Any) -> None:
    def seconds(steps: int) -> float:
        return 1.0 + 0.25 + SCORED + steps * 1.08 * FIRST_STEP + END_SECONDS + BETWEEN

    assert probed(by_hand, seconds(28)).over
    assert not probed(by_hand, seconds(32)).over


@pytest.mark.parametrize(("steps", "over"), [(150, True), (250, False)])
def test_of_many_rows_a_small_part_of_what_they_can_use_is_a_training(by_hand: Any, steps: int, over: bool) -> None:
    """Of 20,000 rows 2,741 steps are useful, a pass is 2,000 and 0.3 passes 600: 250 steps are those of 1.8 passes over 1,400."""
    seconds = 1.0 + 0.25 + SCORED + steps * 1.08 * FIRST_STEP + END_SECONDS + BETWEEN
    assert probed(by_hand, seconds, rows=20_000).over == over


def test_upper_layers_come_first_only_where_they_get_more_training(by_hand: Any) -> None:
    """What lies below them is computed for all rows: of 20,000 that takes what 320 steps of all layers do."""
    seconds = 1.0 + 0.25 + SCORED + 300 * 1.08 * FIRST_STEP + END_SECONDS + BETWEEN
    methods = ("linear_probe", "full", reference("upper_layers").name)
    assert probed(by_hand, seconds, rows=20_000, methods=methods).next().trials[0].variant.group == "full"
    assert probed(by_hand, seconds / 3, methods=methods).next().trials[0].variant.group == methods[2]


def test_below_two_passes_over_the_rows_the_upper_layers_alone_are_trained(by_hand: Any) -> None:
    upper = reference("upper_layers").name

    def first(epochs: float) -> Trial:
        seconds = 0.25 + SCORED + epochs * 100 * 1.08 * FIRST_STEP
        hand = probed(by_hand, 1.0 + seconds + END_SECONDS + BETWEEN, methods=("linear_probe", "full", upper))
        return hand.next().trials[0]

    assert first(2.1).variant.group == "full"
    assert first(1.9).variant.group == upper
    # what lies below them costs 0.6 forwards of 1,000 rows once, and a step of theirs little more than a half
    assert first(1.0).steps == int((100 * 1.08 * FIRST_STEP - 0.6) / (1.08 * 0.55 * FIRST_STEP))


def test_below_twice_the_useful_length_one_run_takes_all(by_hand: Any) -> None:
    def first(epochs: float) -> Trial:
        return (
            probed(by_hand, 1.0 + 0.25 + SCORED + epochs * 100 * 1.08 * FIRST_STEP + END_SECONDS + BETWEEN)
            .next()
            .trials[0]
        )

    assert first(3.0).length == "money", "one and a half times the useful length"
    assert first(3.95).length == "money"
    assert first(4.05).steps == 200, "the useful length, and others after it"
    assert first(4.05).steps == 200


def test_without_a_budget_the_strongest_method_has_its_useful_length(by_hand: Any) -> None:
    main = probed(by_hand, None).next()
    assert steps_of(main) == 200


# What comes after it


def test_a_run_that_was_best_in_its_last_tenth_is_tried_longer(by_hand: Any) -> None:
    def why(best: int, left: float = 60.0) -> str:
        return with_main(by_hand, left, best).next().why

    assert "still getting better" in why(190)
    assert "still getting better" not in why(175)
    # 1.6 times its length at 0.108 s a step, and 0.25 s for evaluating
    assert "still getting better" in why(190, 0.25 + 325 * 0.108)
    assert "still getting better" not in why(190, 0.25 + 315 * 0.108)


@pytest.mark.parametrize(("score", "over"), [(1.0, True), (0.999, False)])
def test_nothing_is_trained_against_a_run_that_cannot_be_beaten(by_hand: Any, score: float, over: bool) -> None:
    hand = probed(by_hand, 200.0)
    hand.ran(hand.next(), score, 20.0, 200, 100)
    assert hand.over is over


def test_a_further_setting_gets_as_many_steps_as_the_best_had(by_hand: Any) -> None:
    # and room for six tenths of what was needed (1.1 times 175 steps) after it
    setting = with_main(by_hand, 0.25 + (200 + 0.6 * 192 + 5) * 0.108, 175).next()
    assert steps_of(setting) == 200
    assert setting.trials[0].length == "at_most"
    assert steps_of(with_main(by_hand, 0.25 + (200 + 0.6 * 192 - 5) * 0.108, 175).next()) > 300


def test_a_setting_that_is_far_slower_than_expected_is_ended_and_leaves_the_rest_to_others(by_hand: Any) -> None:
    expected = 0.25 + 200 * 0.108
    limit = with_main(by_hand, 10 * expected, 175).next().limit_seconds
    assert limit == pytest.approx(2 * expected), "half as fast as expected it still comes to its end"


def test_the_last_setting_gets_all_that_is_left(by_hand: Any) -> None:
    setting = with_main(by_hand, 0.25 + 300 * 0.108, 200).next()
    assert steps_of(setting) == 299
    assert setting.trials[0].length == "money"


def test_a_further_setting_is_run_with_six_tenths_of_what_was_needed(by_hand: Any) -> None:
    assert not with_main(by_hand, 0.25 + 70 * 0.108, 100).over  # 110 were needed
    assert with_main(by_hand, 0.25 + 64 * 0.108, 100).over


def test_a_setting_is_hopeless_after_a_third_of_its_steps_where_its_loss_is_an_eighth_higher(by_hand: Any) -> None:
    hand = probed(by_hand, 200.0)
    hand.ran(hand.next(), 0.8, 20.0, 200, 150, curve=((10, 0.5), (200, 0.5)))
    setting = hand.next()
    assert hand.scheduler.prunes
    (trial,) = setting.trials
    third = steps_of(setting) / 3
    assert not hand.scheduler.prune(trial, int(third) - 2, 9.9)
    assert hand.scheduler.prune(trial, int(third) + 2, 9.9)
    assert hand.scheduler.prune(trial, 150, 1.2 * 0.5)
    assert not hand.scheduler.prune(trial, 150, 1.1 * 0.5), "equally good runs differ by that"
    assert hand.scheduler.prune(trial, int(0.8 * steps_of(setting)), 9.9)
    assert not hand.scheduler.prune(trial, int(0.8 * steps_of(setting)) + 1, 9.9), "the decay may bring what is missing"


@pytest.mark.parametrize(("methods", "told"), [
    (["linear_probe", "full"], "0 epochs would fit in 1.0 s, and with less than 0.3 none was seen to beat "),
    (["full"], "0 steps would fit in 1.0 s, and a run has "),
])  # fmt: skip
def test_the_end_says_what_was_too_short_for_what(by_hand: Any, methods: list[str], told: str) -> None:
    """A row takes 10 ms forwards: scoring a run's 100 validation rows would take all that is left."""
    hand = by_hand(20.0, methods=methods, row_seconds=0.01)
    left = 1.0 + 1.25 * 100 * 0.01 + 0.25 + BETWEEN
    hand.ran(hand.next(), 0.5, 20.0 - left)
    assert hand.over
    assert told in hand.scheduler.state.ending


def test_a_score_of_zero_is_above_one_below_it_and_the_earlier_of_two_stays(by_hand: Any) -> None:
    """Of a Matthews correlation, say."""
    for later in (-0.3, 0.0):
        hand = by_hand(100.0)
        hand.ran(first := hand.next(), 0.0, 1.0)
        hand.ran(hand.next(), later, 90.0, 200)
        hand.scheduler.next_cohorts(1)
        assert hand.scheduler.state.final == first.trials[0].identifier


@pytest.mark.parametrize(("steps", "told"), [
    (-1, "what is left pays for no step of full, and 110 were needed so far;"),
    (1, "left pay for 1 step of full, and 110 were needed so far;"),
    (64, "left pay for 64 steps of full, and 110 were needed so far;"),
])  # fmt: skip
def test_the_end_says_how_many_steps_were_left(by_hand: Any, steps: int, told: str) -> None:
    hand = with_main(by_hand, 0.25 + (steps + 0.5) * 0.108, 100)
    assert hand.over
    assert told in hand.scheduler.state.ending


# The end


@pytest.mark.parametrize(("affordable", "evaluated"), [(17, 0), (25, 25), (35, 35)])
def test_test_rows_are_evaluated_where_they_are_twenty_or_more(by_hand: Any, affordable: int, evaluated: int) -> None:
    hand = probed(by_hand, 60.0)
    main = hand.next()
    # its 100 validation rows took 0.1 s each, which is what test rows are expected to take then
    # of what is left now a twentieth may be gone by then, and 0.3 s between the two
    left = ((affordable + 0.5) * 1.25 * 0.1 + 0.25 + 0.3) / 0.95
    hand.ran(main, 0.8, 59.0 - left, 200, after=10.0)
    cohorts = hand.scheduler.next_cohorts(1)
    assert [cohort.test_rows for cohort in cohorts if cohort.purpose == "evaluate"] == (
        [evaluated] if evaluated else []
    )


def test_baselines_are_for_budgets_of_a_minute_and_more(by_hand: Any) -> None:
    assert probed(by_hand, 60.0).scheduler.baselines_due
    assert not probed(by_hand, 59.0).scheduler.baselines_due


def test_baselines_wait_for_the_features(by_hand: Any) -> None:
    hand = by_hand(100.0, methods=["tfidf_probe", "full"])
    hand.scheduler.measured(*hand.scheduler.to_measure(), TrialCost(1, 10.0, 0.0, 0.0, 0.0, 0.0))
    for due in (False, True):  # after tokens alone, after the features
        assert not hand.scheduler.baselines_due
        hand.ran(hand.next(), 0.5, 1.0)
        assert hand.scheduler.baselines_due is due


def test_nothing_is_trained_against_what_cannot_be_beaten(by_hand: Any) -> None:
    hand = by_hand(60.0)
    hand.ran(hand.next(), 1.0, 1.0)
    assert hand.over
    assert "no run can score higher than 1.000" in hand.scheduler.state.ending


@pytest.mark.parametrize(("kind", "again"), [("out_of_memory", False), ("limit", False), ("not_finite", True)])
def test_what_a_method_takes_is_the_same_at_another_rate(by_hand: Any, kind: str, again: bool) -> None:
    """A method for which there is no memory is not loaded and halved again for each rate; one that diverged may do better."""
    hand = probed(by_hand, 300.0, methods=["linear_probe", "full", "lora"])
    first = hand.next()
    assert first.trials[0].variant.group == "full"
    hand.failed(first, kind, 1.0)
    tried: list[str] = []
    while not hand.over:
        cohort = hand.next()
        tried.append(cohort.trials[0].variant.group)
        hand.ran(cohort, 0.8, 10.0, steps_of(cohort))
    assert "lora" in tried
    assert ("full" in tried) == again


def test_a_method_without_memory_for_a_first_short_run_is_no_main_run(by_hand: Any) -> None:
    hand = by_hand(300.0, methods=["full", "lora"])
    hand.failed(hand.next(), "out_of_memory", 1.0)
    assert hand.next().trials[0].variant.group == "lora"


def test_tokens_alone_are_scored_without_time_for_passes(by_hand: Any) -> None:
    """Of a slow backbone passes for 100 validation rows take more than is left, and the first adapter would be refused."""
    hand = by_hand(10.0, methods=["tfidf_probe"], row_seconds=0.2)
    while trials := hand.scheduler.to_measure():
        hand.scheduler.measured(trials[0], None)
    first = hand.next()
    assert hand.ran(first, 0.5, 1.0, after=0.1) == pytest.approx(10.0)
    last = hand.next()
    assert (last.purpose, last.trials, last.test_rows) == ("evaluate", first.trials, 200)
    assert hand.scheduler.time_limit(last, hand.costs).seconds > 0
