"""What is solved first: on how much of the rows, by the seconds that features take."""

from __future__ import annotations

from typing import Any

import pytest

from dollartune.planner.trial_cost import TrialCost


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


@pytest.mark.parametrize(("seconds", "share"), [(3.0, 1.0), (49.0, 1.0), (100.0, 0.5), (400.0, 0.12)])
def test_tokens_alone_are_of_as_many_rows_as_half_of_the_money_solves(
    by_hand: Any, seconds: float, share: float
) -> None:
    """With 150 classes solving takes longer than a short budget has, and nothing would stand at its end."""
    hand = by_hand(100.0, methods=["tfidf_probe", "full"])
    scheduler = hand.scheduler
    asked: list[str] = []
    while trials := scheduler.to_measure():
        asked.append(trials[0].variant.build()[0].config.pooling)
        scheduler.measured(trials[0], TrialCost(1, 15.0 if len(asked) == 1 else seconds, 0.0, 0.0, 0.0, 0.0))
    assert asked == ["deep", "none"]
    assert scheduler.state.probe_tokens == [0, None]
    tokens = hand.next().trials[0].variant.build()[0].config
    assert (tokens.pooling, tokens.rows_share) == ("none", pytest.approx(share, abs=0.006))
    hand.ran(hand.next(), 0.4, 1.0)
    features = hand.next().trials[0].variant.build()[0].config
    assert (features.pooling, features.rows_share) == ("deep", 1.0)


@pytest.mark.parametrize(("seconds", "scored"), [(54.5, 100), (355.0, 30), (50_000.0, 100)])
def test_validation_rows_are_as_few_as_the_rows_that_are_solved_on(by_hand: Any, seconds: float, scored: int) -> None:
    """Features of all validation rows beside those of 15 % of the training rows would take the rest of the money."""
    hand = by_hand(100.0, methods=["tfidf_probe", "full"])
    while trials := hand.scheduler.to_measure():
        hand.scheduler.measured(trials[0], TrialCost(1, seconds, 0.0, 0.0, 0.0, 0.0, validation_rows=100))
    assert hand.scheduler.time_limit(hand.next(), hand.costs).validation_rows == scored


def test_where_features_of_whole_rows_take_too_long_fewer_tokens_are_measured(by_hand: Any) -> None:
    scheduler = by_hand(100.0, methods=["tfidf_probe", "full"]).scheduler
    tried = []
    while trials := scheduler.to_measure():
        config = trials[0].variant.build()[0].config
        tried.append(0 if config.pooling == "none" else config.first_tokens)
        scheduler.measured(trials[0], None)
    assert tried == [None, 128, 0]
    assert scheduler.state.probe_tokens == [0]


@pytest.mark.parametrize(
    ("seconds", "shares"),
    [(2.0, [1.0]), (53.5, [0.14, 1.0]), (107.0, [0.072, 0.5]), (2_000.0, [0.027]), (None, [1.0])],
)
def test_of_pictures_that_take_too_long_a_share_is_solved_on(
    by_hand: Any, seconds: float | None, shares: list[float]
) -> None:
    """Without words to count there is nothing else to begin with: all of them would take the money and leave no adapter."""
    hand = by_hand(100.0, methods=["linear_probe", "full"])
    (trial,) = hand.scheduler.to_measure()
    hand.scheduler.measured(trial, None if seconds is None else TrialCost(1, seconds, 0.0, 0.0, 0.0, 0.0))
    assert not hand.scheduler.to_measure()
    for share in shares:
        config = hand.next().trials[0].variant.build()[0].config
        assert config.rows_share == pytest.approx(share, abs=0.01)
        hand.ran(hand.next(), 0.5, 1.0)
    assert hand.next().trials[0].variant.group == "full"


@pytest.mark.parametrize(
    ("budget", "seconds", "scoring", "shares"),
    [
        (100.0, 14.0, 0.0, [1.0]),  # with the margin 18 s, of which 10 s are more than half
        (100.0, 20.0, 0.0, [0.38, 1.0]),
        (100.0, 20.0, 6.0, [0.15, 1.0]),  # validation rows come with the part
        (100.0, 20.0, 9.9, [0.05, 1.0]),
        (20.0, 7.0, 0.0, [1.0]),  # 9 s are soon enough
        (20.0, 8.0, 0.0, [0.19, 1.0]),
    ],
)
def test_a_part_of_the_pictures_comes_first_where_all_would_come_late(
    by_hand: Any, budget: float, seconds: float, scoring: float, shares: list[float]
) -> None:
    hand = by_hand(budget, methods=["linear_probe", "full"])
    hand.scheduler.measured(*hand.scheduler.to_measure(), TrialCost(1, seconds, 0.0, 0.0, scoring, 0.0))
    for share in shares:
        run = hand.next()
        assert run.trials[0].variant.build()[0].config.rows_share == pytest.approx(share, abs=0.011)
        hand.ran(run, 0.5, 1.0)
    incumbent = hand.scheduler.history.incumbent()
    assert incumbent.setting.rows_share == 1.0, "as good on the validation rows, and it knows more rows"
    assert hand.scheduler.probe.next_run() is None


@pytest.mark.parametrize(
    ("seconds", "expected"), [(25.0, [(0, 1.0), (None, 0.31), (None, 1.0)]), (53.0, [(0, 1.0), (None, 1.0)])]
)
def test_a_part_of_texts_comes_after_tokens_alone_unless_it_says_no_more(
    by_hand: Any, seconds: float, expected: list[tuple[int | None, float]]
) -> None:
    hand = by_hand(100.0, methods=["tfidf_probe", "full"])
    asked = 0
    while trials := hand.scheduler.to_measure():
        asked += 1
        hand.scheduler.measured(trials[0], TrialCost(1, seconds if asked == 1 else 1.0, 0.0, 0.0, 0.0, 0.0))
    for tokens, share in expected:
        config = hand.next().trials[0].variant.build()[0].config
        assert (0 if config.pooling == "none" else config.first_tokens) == tokens
        assert config.rows_share == pytest.approx(share, abs=0.01)
        hand.ran(hand.next(), 0.5, 1.0)
    assert hand.next().trials[0].variant.group == "full"


@pytest.mark.parametrize(("took", "expected"), [(1.0, 1.0), (6.5, 0.83), (14.0, 0.39), (15.0, None)])
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


@pytest.mark.parametrize(("there", "expected"), [(0.1, 0.19), (0.6, None)])
def test_a_share_that_time_cut_is_made_larger_where_nothing_is_trained(
    by_hand: Any, there: float, expected: float | None
) -> None:
    """Of pictures, whose features were to take 5 s: the clock gave the share, and less was needed afterwards. Scoring 100 rows
    for the first time takes 12.5 s, which are not there, but their features are."""
    hand = by_hand(20.0, row_seconds=0.1, test=1)
    hand.scheduler.measured(*hand.scheduler.to_measure(), TrialCost(1, 5.0, 0.0, 0.0, 0.0, 0.0))
    hand.ran(hand.next(), 0.5, 10.0, rows_share=there)
    for _ in range(2):  # the second time there is no other setting, and no more time
        if expected is None:
            break
        config = hand.next().trials[0].variant.build()[0].config
        assert config.rows_share == pytest.approx(expected, abs=0.02)
        # a little more, and most of the time was the solution's: a third larger share is not to be had
        hand.ran(hand.next(), 0.5, 2.0, rows_share=there + 0.005)
        expected = None
    assert hand.over


def test_of_one_probe_that_which_had_more_rows_in_the_end_is_the_incumbent(by_hand: Any) -> None:
    hand = by_hand(100.0)
    hand.scheduler.measured(*hand.scheduler.to_measure(), TrialCost(1, 53.5, 0.0, 0.0, 0.0, 0.0))
    for share in (0.14, 0.05):
        hand.ran(hand.next(), 0.5, 1.0, rows_share=share)
    assert hand.scheduler.history.incumbent() == hand.scheduler.state.runs[0]
