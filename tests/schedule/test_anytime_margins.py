"""Every factor and limit by which the anytime scheduler decides, driven by hand: what it says next, after runs that are made up.

1,000 rows, batches of 10 and two epochs: a pass over the rows is 100 steps, and 200 are useful.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from pretend import Clock

from dollartune.engines.base import Cohort
from dollartune.engines.display import Display
from dollartune.methods.registry import reference
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule import scheduler as scheduler_module
from dollartune.schedule.anytime import AnytimeScheduler
from dollartune.study.api import Study
from dollartune.study.runner import StudyRunner
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import RECORD_VERSION, Cost, record_of
from dollartune.trials.trial import Trial

END_SECONDS = 1.25 * 200 * 0.001 + 0.25
"""Of evaluating 200 test rows of a millisecond each, and writing."""
SCORED = 1.25 * 100 * 0.001
"""Of a run of a method that was not seen before: its 100 validation rows."""
BETWEEN = 0.3
FIRST_STEP = 3.5 * 10 * 0.001
"""Seconds of a step of ten rows before any was seen."""


class ByHand:
    """One cell's scheduler, whose runs take and bring what the test says."""

    def __init__(self, settings: dict[str, Any], row_seconds: float, test: int) -> None:
        study = Study(settings)
        study.store.create("{}", [])
        runner = StudyRunner(study.settings, study.store, Display())
        self.ledger, self.clock = runner.ledger, Clock()
        self.ledger.clock = self.clock
        (self.scheduler,) = runner.scheduler.schedulers  # type: ignore[attr-defined]
        assert isinstance(self.scheduler, AnytimeScheduler)
        self.costs: Any = SimpleNamespace(
            splits=SimpleNamespace(validation=[0] * 100, test=[0] * test),
            seconds_per_row=row_seconds,
            seconds_per_validation_row=row_seconds,
        )
        self.scheduler.begin(1.0)

    def next(self) -> Cohort:
        (cohort,) = self.scheduler.next_cohorts(1)
        return cohort

    @property
    def over(self) -> bool:
        """Whether nothing more is trained."""
        cohorts = self.scheduler.next_cohorts(1)
        return not cohorts or cohorts[0].purpose == "evaluate"

    def ran(
        self, cohort: Cohort, score: float, seconds: float, steps: int = 0, best: int | None = None,
        curve: tuple[tuple[int, float], ...] = (), after: float = 0.1, parameters: int = 20_000,
    ) -> float:  # fmt: skip
        """Books a run and tells the scheduler of it; returns the seconds that it was allowed."""
        (trial,) = cohort.trials
        allowed = self.scheduler.time_limit(cohort, self.costs).seconds
        with self.ledger.book("tune", trial=trial.identifier):
            self.clock.now += seconds
        training = {
            "stopped": "finished", "best_validation_loss": 1 - score, "seconds": seconds - after, "steps": steps,
            "best_step": steps if best is None else best,
            "history": [{"epoch": 0.0, "step": step, "seconds": 0.0, "train_loss": 1.0, "validation_loss": loss}
                        for step, loss in curve],
        }  # fmt: skip
        record = {
            "version": RECORD_VERSION, "id": trial.identifier, "trial": trial.to_json(), "metric": "accuracy", "status": "tried",
            "validation": {"score": score, "examples": 100, "standard_error": 0.02}, "training": training,
            "parameters": {"total": parameters}, "data": {"train": 1000, "validation": 100, "test": len(self.costs.splits.test)},
            "cost": {"seconds": seconds, "dollars": 0.0, "price_per_hour": 0.0},
        }  # fmt: skip
        self.scheduler.done(trial, record_of(record))
        return allowed


@pytest.fixture
def by_hand(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(scheduler_module, "closing_seconds", lambda: 0.0)
    made = itertools.count()

    def make(
        seconds: float | None, methods: Any = ("linear_probe", "full"), row_seconds: float = 0.001, test: int = 200,
        on_validation: bool = False,
    ) -> ByHand:  # fmt: skip
        limit = {} if seconds is None else {"budget": {"seconds": seconds, "per": "study"}}
        settings = study_of(
            name=f"by hand {next(made)}", methods=list(methods), seeds=2, scales=["all"],
            search="anytime", baselines=False, keep_adapters="none",
            training={"batch_size": 10, "epochs": 2, "train_on_validation": on_validation},
            evaluation={"rows": 1000, "free_generation": False, "forgetting": False, "inference_cost": False}, **limit,
        )  # fmt: skip
        return ByHand(settings, row_seconds, test)

    return make


def probed(by_hand: Any, seconds: float | None, **given: Any) -> ByHand:
    """After a probe of one second that scored 0.5."""
    hand = by_hand(seconds, **given)
    hand.ran(hand.next(), 0.5, 1.0)
    return hand


def with_main(by_hand: Any, left: float, best: int, methods: Any = ("linear_probe", "full")) -> ByHand:
    """After the strongest method's 200 steps of 0.1 s, with so much left for further training."""
    hand = probed(by_hand, 1.0 + 20.0 + left + END_SECONDS + BETWEEN, methods=methods)
    main = hand.next()
    assert steps_of(main) == 200
    hand.ran(main, 0.8, 20.0, 200, best)
    return hand


def steps_of(cohort: Cohort) -> int:
    steps = cohort.trials[0].steps
    assert steps is not None
    return steps


# The first adapter


def test_without_a_probe_the_first_run_gets_a_tenth_of_the_money_and_a_quarter_of_the_useful_steps(
    by_hand: Any,
) -> None:
    first = by_hand(100.0, methods=["full"]).next()
    assert first.limit_seconds == pytest.approx(10.0)
    assert steps_of(first) == 50, "as many rows as a study has that says nothing of them: a thousand"


def test_features_come_first_where_they_are_quick_and_never_where_they_take_more_than_seven_tenths(
    by_hand: Any,
) -> None:
    def wanted(seconds: float) -> list[int | None]:
        """What the probe passes through the backbone, for features that were measured to take so long."""
        scheduler = by_hand(100.0, methods=["tfidf_probe", "full"]).scheduler
        while trials := scheduler.to_measure():
            scheduler.measured(trials[0], TrialCost(1, seconds, 0.0, 0.0, 0.0, 0.0))
        return list(scheduler.state.probe_tokens)

    assert wanted(2.2) == [None], "with the margin 2.9 of 100 s"
    assert wanted(2.4) == [0, None], "tokens alone come first, in a second or two"
    assert wanted(53.5) == [0, None], "with the margin 69.6 of 100 s"
    assert wanted(54.5) == [0, 128], "more would leave no time for anything else: fewer tokens, of a share of the rows"
    assert wanted(355.0) == [0, 128], "of 15 % of the rows"
    assert wanted(362.0) == [0], "of fewer rows they say no more than tokens alone"


def test_where_features_of_whole_rows_take_too_long_fewer_tokens_are_measured(by_hand: Any) -> None:
    scheduler = by_hand(100.0, methods=["tfidf_probe", "full"]).scheduler
    tried = []
    while trials := scheduler.to_measure():
        tried.append(trials[0].variant.build()[0].config.first_tokens)
        scheduler.measured(trials[0], None)
    assert tried == [None, 128]
    assert scheduler.state.probe_tokens == [0]


@pytest.mark.parametrize(("took", "expected"), [(1.0, 1.0), (6.5, 0.53), (8.0, None)])
def test_a_share_that_went_quicker_than_expected_is_made_larger_where_nothing_is_trained(
    by_hand: Any, took: float, expected: float | None
) -> None:
    """Of 20 s; a step takes 3.5 s, so that nothing can be trained."""
    hand = by_hand(20.0, methods=["tfidf_probe", "full"], row_seconds=0.1, test=1)
    while trials := hand.scheduler.to_measure():
        hand.scheduler.measured(trials[0], TrialCost(1, 36.0, 0.0, 0.0, 0.0, 0.0))
    hand.ran(hand.next(), 0.4, 0.5)
    first = hand.next().trials[0].variant.build()[0].config
    assert (first.first_tokens, first.rows_share) == (128, 0.3), "0.7 of 20 s for 1.3 times 36 s"
    hand.ran(hand.next(), 0.5, took)
    if expected is None:
        assert hand.over
        return
    config = hand.next().trials[0].variant.build()[0].config
    assert config.rows_share == pytest.approx(expected, abs=0.02)


# The strongest method's first run


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


def averaged(by_hand: Any, left: float, score: float = 0.8) -> ByHand:
    """After 200 steps of 0.1 s over 1,000 rows: over all 1,100 they would be 220."""
    hand = probed(by_hand, 1.0 + 20.0 + left + END_SECONDS + BETWEEN, on_validation=True)
    main = hand.next()
    hand.ran(main, score, 20.0, 200, 190)
    return hand


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


def test_rows_that_take_no_time_on_the_clock_are_affordable(by_hand: Any) -> None:
    assert steps_of(probed(by_hand, 20.0, row_seconds=0.0).next()) == 200


# What comes after it


def test_a_run_that_was_best_in_its_last_tenth_is_tried_longer(by_hand: Any) -> None:
    def why(best: int, left: float = 60.0) -> str:
        return with_main(by_hand, left, best).next().why

    assert "still getting better" in why(190)
    assert "still getting better" not in why(175)
    # 1.6 times its length at 0.108 s a step, and 0.25 s for evaluating
    assert "still getting better" in why(190, 0.25 + 325 * 0.108)
    assert "still getting better" not in why(190, 0.25 + 315 * 0.108)


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


def test_upper_layers_that_were_not_seen_yet_have_time_for_what_lies_below_them(by_hand: Any) -> None:
    upper = reference("upper_layers").name
    hand = with_main(by_hand, 200.0, 175, methods=("linear_probe", "full", upper))
    setting = hand.next()
    assert (setting.trials[0].variant.group, steps_of(setting)) == (upper, 200)
    features = 0.6 * 1000 * 0.001
    expected = 200 * 1.08 * 0.55 * FIRST_STEP + features + SCORED + 0.25
    assert setting.limit_seconds == pytest.approx(2 * expected, rel=0.01)


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
    (["linear_probe", "full"], "0.0 epochs would fit in 1 s, and below 0.3 none was seen to pass a solved probe;"),
    (["full"], "0 steps would fit in 1 s, and a run has "),
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


def test_a_twentieth_of_the_money_is_kept_for_test_rows(by_hand: Any) -> None:
    hand = probed(by_hand, 14.0, test=20_000)
    allowed = hand.ran(hand.next(), 0.8, 10.0, 200)
    # 700 rows of a millisecond are a twentieth of 14 s; evaluating them is reserved with its margin
    assert allowed == pytest.approx(14.0 - 1.0 - (1.25 * 0.7 + 0.25))


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
