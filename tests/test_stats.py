"""Intervals, differences, the set of the best, sizes of test sets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from scipy import stats as reference
from sklearn import metrics as sklearn

from dollartune.errors import UserError
from dollartune.stats import (
    CallableOutcomes,
    Outcomes,
    TaskScores,
    compare,
    difference_interval,
    examples_for,
    needed_test_size,
    score_interval,
    smallest_difference,
    summarize,
)
from dollartune.stats.exact import flipped, rows_that_differ
from dollartune.stats.intervals import (
    bca_sides,
    draw_counts,
    paired,
    score_intervals,
    squared_by_seeds,
    variance_of,
    wilson_sides,
)
from dollartune.stats.pairs import _pair_variances, chances_per_look, pairs_of, prior_of_variances
from dollartune.stats.size import _rounded_up

SKLEARN = {
    "accuracy": sklearn.accuracy_score,
    "balanced_accuracy": sklearn.balanced_accuracy_score,
    "f1": lambda truth, given: sklearn.f1_score(truth, given, labels=["yes"], average="macro"),
    "macro_f1": lambda truth, given: sklearn.f1_score(truth, given, average="macro"),
    "matthews": sklearn.matthews_corrcoef,
}


def draw(rng: np.random.Generator, *qualities: float, seeds: int = 3, examples: int = 500) -> list[Outcomes]:
    difficulty = rng.normal(0, 1, examples)
    return [
        Outcomes.from_values(
            rng.random((seeds, examples)) < 1 / (1 + np.exp(-(q + rng.normal(0, 0.05, (seeds, 1)) + difficulty)))
        )
        for q in qualities
    ]


@pytest.mark.parametrize("metric", SKLEARN)
@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "no", "yes"]])
def test_label_metrics_agree_with_scikit_learn(metric: str, labels: list[str]) -> None:
    rng = np.random.default_rng(len(labels))
    truth = rng.choice(labels, 200)
    given = np.where(rng.random((2, 200)) < 0.7, truth, rng.choice(labels, (2, 200)))
    outcomes = Outcomes.from_labels(given, truth, metric)
    assert outcomes.points() == pytest.approx([SKLEARN[metric](truth, row) for row in given])
    counts = draw_counts(200, 3, seed=1)
    for counted, scores in zip(counts, outcomes.resampled(counts), strict=True):
        chosen = np.repeat(np.arange(200), counted.astype(int))
        expected = [SKLEARN[metric](truth[chosen], row[chosen]) for row in given]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_a_prediction_that_is_no_label_is_wrong_for_every_metric() -> None:
    truth = np.array(["yes", "no"] * 50)
    given = truth.copy()
    given[:10] = "other"
    for metric in SKLEARN:
        score = Outcomes.from_labels(given, truth, metric).points()[0]
        assert 0.7 < score < 1


def test_callables_give_the_same_as_the_fast_way() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    given = np.where(rng.random((3, 60)) < 0.8, truth, 1 - truth)
    fast = Outcomes.from_labels(given, truth, "matthews")
    slow = CallableOutcomes(
        given.tolist(), truth.tolist(), lambda p, r: float(sklearn.matthews_corrcoef(r, p)), "matthews", (-1, 1), 60
    )
    assert slow.influence() == pytest.approx(fast.influence())
    first, second = score_interval(fast, resamples=60), score_interval(slow, resamples=60)
    assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=1e-5)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=200)
    counts = draw_counts(200, 20_000, seed=0)
    below, above = bca_sides(values.mean(), counts @ values / 200, values, 0.95)
    expected = reference.bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1))
    low, high = expected.confidence_interval
    assert values.mean() - below == pytest.approx(low, abs=0.006)
    assert values.mean() + above == pytest.approx(high, abs=0.006)
    assert above > below  # skewed to the right


def test_wilson_agrees_with_scipy() -> None:
    expected = reference.binomtest(7, 50).proportion_ci(0.95, "wilson")
    below, above = wilson_sides(7 / 50, 50, 0.95)
    assert (7 / 50 - below, 7 / 50 + above) == pytest.approx((expected.low, expected.high))


def test_variance_is_split_as_an_analysis_of_variance_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (6, 1)) * 0.3 + rng.normal(0, 2, 4000) + rng.normal(0, 1, (6, 4000))
    outcomes = Outcomes.from_values(values, bounds=None)
    variance = variance_of(outcomes.influence(), outcomes.points())
    assert variance.examples * 4000 == pytest.approx(4 + 1 / 6, rel=0.05)
    assert variance.interaction * 4000 == pytest.approx(1, rel=0.05)
    assert variance.spread == pytest.approx(values.mean(1).var(ddof=1))
    assert variance.degrees == 5


def test_without_seed_noise_the_interval_is_that_of_the_examples() -> None:
    correct = np.tile(np.random.default_rng(0).random(400) < 0.8, (3, 1))
    three, one = score_interval(Outcomes.from_values(correct)), score_interval(Outcomes.from_values(correct[0]))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_few_seeds_widen_by_students_factor() -> None:
    scores = np.array([0.4, 0.5, 0.6])
    values = np.repeat(scores[:, None], 1000, axis=1)
    interval = score_interval(Outcomes.from_values(values))
    half = reference.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_a_perfect_score_is_not_certain() -> None:
    interval = score_interval(Outcomes.from_values(np.ones((3, 100))))
    assert interval.high == 1
    assert 0.95 < interval.low < 0.975


def test_one_seed_says_what_it_does_not_know() -> None:
    assert "one seed" in score_interval(Outcomes.from_values(np.arange(50) % 2)).sentence


@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_intervals_are_sane_for_any_outcomes(seeds: int, examples: int, seed: int) -> None:
    correct = np.random.default_rng(seed).random((seeds, examples)) < 0.7
    interval = score_interval(Outcomes.from_values(correct), resamples=100)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert np.isfinite(interval.standard_error)


def test_the_pairing_takes_the_examples_difficulty_away() -> None:
    first, second = draw(np.random.default_rng(0), 1.0, 0.6, examples=2000)
    paired = difference_interval(first, second)
    unpaired = np.hypot(score_interval(first).standard_error, score_interval(second).standard_error)
    assert paired.standard_error < unpaired
    assert 0 < paired.low < paired.value
    backwards = difference_interval(second, first)
    assert (backwards.low, backwards.high) == pytest.approx((-paired.high, -paired.low), abs=2e-3)


def test_one_seed_is_held_against_each_of_the_others() -> None:
    trained = draw(np.random.default_rng(0), 2.0)[0]
    prompted = draw(np.random.default_rng(1), 0.0, seeds=1)[0]
    interval = difference_interval(trained, prompted)
    assert interval.seeds == 3
    assert interval.value == pytest.approx(trained.points().mean() - prompted.points()[0])


def test_the_best_is_found_and_the_worse_are_left_out() -> None:
    good, same, bad = draw(np.random.default_rng(5), 1.5, 1.5, 0.0, examples=1000)
    result = compare({"good": good, "same": same, "bad": bad})
    assert set(result.indistinguishable) == {"good", "same"}
    assert result["bad"].beaten_by in {"good", "same"}
    assert result["bad"].high < 0
    assert result["bad"].p_value < 0.05
    assert "cannot be told apart" in result.sentence
    assert "corrected for comparing 3 methods (95 % family-wise)" in result.explanation
    assert result.explanation in result.sentence


def test_no_difference_keeps_everyone_and_names_a_size() -> None:
    methods = dict(zip("abcd", draw(np.random.default_rng(1), 1.0, 1.02, 0.98, 1.0, examples=200), strict=True))
    result = compare(methods)
    assert set(result.indistinguishable) == set("abcd")
    assert result.needed is not None
    assert result.needed.sentence in result.warnings


def test_more_rivals_raise_the_bar() -> None:
    rng = np.random.default_rng(2)
    first, second, *others = draw(rng, 1.4, 1.2, *[-1.0] * 8, examples=2000)
    few = compare({"first": first, "second": second})
    many = compare({"first": first, "second": second} | {str(i): other for i, other in enumerate(others)})
    assert few["second"].difference == many["second"].difference < 0
    assert many["second"].low < few["second"].low
    assert "comparing 10 methods" in many.sentence
    assert "The two were compared row by row" in few.sentence


def test_one_seed_is_named_unless_none_is_needed() -> None:
    rng = np.random.default_rng(3)
    trained, (prompted,) = draw(rng, 1.0, 0.9), draw(rng, 0.0, seeds=1)
    methods = {"lora": trained[0], "full": trained[1], "zero_shot": prompted}
    assert any("zero_shot ran with one seed only" in warning for warning in compare(methods).warnings)
    assert not any("seed only" in warning for warning in compare(methods, seedless=["zero_shot"]).warnings)


def test_the_size_that_would_do_is_rounded_up() -> None:
    assert [_rounded_up(n) for n in (7, 99, 100, 101, 1234, 12_001)] == [7, 99, 100, 110, 1300, 13_000]


def test_shares_of_one_method_and_no_method() -> None:
    only = compare({"lora": draw(np.random.default_rng(0), 1.0)[0]})
    assert only.best == "lora"
    assert only.indistinguishable == ("lora",)
    assert only.needed is None
    with pytest.raises(UserError, match="no results"):
        compare({})


def test_rows_are_not_called_enough_where_they_did_not_tell_two_methods_apart() -> None:
    truth = np.array(["yes"] * 40)
    right, wrong = (
        Outcomes.from_labels(np.full((3, 40), answer), truth).grouped(np.arange(40) % 2) for answer in ("yes", "no")
    )
    result = compare({"right": right, "wrong": wrong})
    assert result.winner is None, "two groups of rows, both won by the first, are two tosses of a coin"
    assert result.needed is not None
    assert "enough" not in result.needed.sentence
    assert "few rows that differ, does not" in result.needed.sentence


def test_identical_methods_are_not_told_apart() -> None:
    method = draw(np.random.default_rng(0), 1.0)[0]
    result = compare({"a": method, "b": method})
    assert set(result.indistinguishable) == {"a", "b"}


def test_different_test_sets_are_refused() -> None:
    rng = np.random.default_rng(0)
    methods = {"a": draw(rng, 1.0, examples=50)[0], "b": draw(rng, 1.0, examples=60)[0]}
    with pytest.raises(UserError, match="different numbers"):
        compare(methods)
    with pytest.raises(UserError, match="same test examples"):
        difference_interval(methods["a"], methods["b"])


def test_same_seed_same_numbers() -> None:
    methods = dict(zip("ab", draw(np.random.default_rng(0), 1.0, 1.1), strict=True))
    assert compare(methods, seed=3) == compare(methods, seed=3)


def test_agreeing_variances_are_pooled_and_disagreeing_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    alike = rng.chisquare(4, 300) / 4
    center, degrees = prior_of_variances(alike, 4, 80)
    assert degrees > 10
    assert center == pytest.approx(1, rel=0.15)
    _, few = prior_of_variances(alike * np.exp(rng.normal(0, 2, 300)), 4, 80)
    assert few < 3
    assert prior_of_variances(alike[:2], 4, 80) == (0.0, 0.0)
    # pairs of eight methods say no more than eight variances do
    _, all_known = prior_of_variances(alike[:28], 4, 28)
    _, of_pairs = prior_of_variances(alike[:28], 4, 28, 8)
    assert of_pairs < all_known


def test_needed_size_shows_the_gap_when_it_is_there() -> None:
    first, second = draw(np.random.default_rng(0), 1.3, 1.0, seeds=1, examples=300)
    needed = needed_test_size(first, second)
    assert needed.examples is not None
    assert needed.examples > 300
    assert f"{_rounded_up(needed.examples):,} rows" in needed.sentence
    # halving the gap takes four times the examples
    assert examples_for(0.01, 0.2) == pytest.approx(4 * examples_for(0.02, 0.2), rel=0.02)


def test_needed_size_has_the_power_it_states() -> None:
    gap, disagreement = 0.04, 0.2
    size = examples_for(gap, disagreement, power=0.8)
    rng = np.random.default_rng(0)
    wins = (disagreement + gap) / 2, (disagreement - gap) / 2
    seen = 0
    for _ in range(400):
        draws = rng.random(size)
        difference = np.where(draws < wins[0], 1.0, np.where(draws < disagreement, -1.0, 0.0))
        seen += abs(difference.mean()) > 1.96 * difference.std(ddof=1) / np.sqrt(size)
    assert seen / 400 == pytest.approx(0.8, abs=0.07)


def test_when_seeds_hide_the_gap_no_test_set_helps() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((3, 500)) < 0.8
    first = Outcomes.from_values(base)
    second = Outcomes.from_values(base * 1.0 + np.array([[0.2], [-0.2], [0.03]]), bounds=None)
    needed = needed_test_size(first, second)
    assert needed.examples is None
    assert needed.seeds is not None
    assert needed.seeds > 3
    assert "seeds" in needed.sentence


@pytest.mark.parametrize(
    "make",
    [
        lambda: Outcomes.from_values(np.zeros((3, 0))),
        lambda: Outcomes.from_values([[0.5, np.nan]]),
        lambda: Outcomes.from_values(np.zeros((2, 3, 4))),
        lambda: Outcomes.from_labels(["a"], ["a", "b"]),
        lambda: Outcomes.from_labels(["a"], ["a"], "acuracy"),
        lambda: Outcomes.from_labels(["a"], ["a"], "f1", positive="z"),
        lambda: CallableOutcomes([[1]], [1, 2], lambda p, r: 0.0),
        lambda: score_interval(Outcomes.from_values([1, 0]), level=1.0),
        lambda: examples_for(0.1, 0.05),
    ],
)
def test_bad_input_is_refused_with_a_word(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, dollartune.stats; assert 'numpy' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _varied(seed: int, count: int = 9, examples: int = 80) -> list[Outcomes]:
    """Methods of different skill, some with one seed and some with fewer seeds than the rest, one equal to another."""
    chance = np.random.default_rng(seed)
    difficulty = chance.normal(size=examples)
    made = []
    for index in range(count):
        seeds = (4, 4, 4, 3, 1)[index % 5]
        skill = 0.3 * index + chance.normal(0, 0.2, size=(seeds, 1))
        right = chance.random((seeds, examples)) < 1 / (1 + np.exp(-(skill - difficulty)))
        made.append(Outcomes.from_values(right))
    return [*made, made[0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_all_pairs_at_once_are_each_pair_alone(seed: int) -> None:
    methods = _varied(seed)
    pairs = _pair_variances(methods)
    for i, first in enumerate(methods):
        for j, second in enumerate(methods):
            if i == j:
                continue
            alone = variance_of(paired(first.influence(), second.influence()), paired(first.points(), second.points()))
            assert pairs.examples[i, j] == pytest.approx(alone.examples, abs=1e-12)
            assert pairs.spread[i, j] == pytest.approx(alone.spread, abs=1e-12)
            assert pairs.interaction[i, j] == pytest.approx(alone.interaction, abs=1e-12)
            assert (pairs.degrees[i, j], pairs.count[i, j]) == (alone.degrees, alone.degrees + 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_smallest_chance_of_all_rivals_is_where_one_lead_equals_its_half_width(seed: int) -> None:
    pairs = pairs_of(_varied(seed))
    worst, rivals = pairs.p_values()

    def width(chance: float, row: int, column: int) -> float:
        by_seeds = squared_by_seeds(
            chance, *(float(m[row, column]) for m in (pairs.spread, pairs.interaction, pairs.degrees)),
            int(pairs.count[row, column]),
        )  # fmt: skip
        return float(np.sqrt(special.ndtri(1 - chance) ** 2 * pairs.examples[row, column] + by_seeds))

    for column in range(len(worst)):
        ahead = np.flatnonzero(pairs.difference[:, column] > 0)
        alone = {
            row: optimize.brentq(
                lambda log, row=row, column=column: width(np.exp(log), row, column) - pairs.difference[row, column],
                np.log(1e-15), np.log(0.5),
            )
            for row in ahead
            if width(1e-15, row, column) > pairs.difference[row, column]
        }  # fmt: skip
        if len(alone) < len(ahead):
            assert worst[column] == 0.0
            assert rivals[column] in ahead
        elif alone:
            assert worst[column] == pytest.approx(float(np.exp(min(alone.values()))), rel=1e-6)
            assert alone[rivals[column]] == min(alone.values())
        else:
            assert (worst[column], rivals[column]) == (0.5, -1)


def test_drawing_all_methods_together_gives_each_its_chance_per_look() -> None:
    pairs = pairs_of(_varied(3, count=7))
    together = chances_per_look(pairs, 0.95, 0)
    total, generator = pairs.total, np.random.default_rng(1)
    for i in range(len(total)):
        rivals = np.array([j for j in range(len(total)) if j != i and total[i, j] > 0])
        own = total[i, rivals]
        covariance = (own[:, None] + own[None, :] - total[np.ix_(rivals, rivals)]) / 2
        drawn = generator.multivariate_normal(np.zeros(len(rivals)), covariance, 40_000, check_valid="ignore")
        alone = 1 - special.ndtr(np.quantile((drawn / np.sqrt(own)).max(axis=1), 0.95))
        assert together[i] == pytest.approx(alone, rel=0.1)


def test_intervals_of_many_are_those_of_each() -> None:
    methods = _varied(4)
    counts = draw_counts(80, 500, seed=0)
    for one, interval in zip(methods, score_intervals(methods, 0.95, counts), strict=True):
        assert interval == score_interval(one, counts=counts)


def test_few_rows_that_differ_are_counted_with_the_exact_test() -> None:
    first, second = np.ones((1, 300)), np.ones((1, 300))
    second[0, :6] = 0
    differ = rows_that_differ(Outcomes.from_values(first), Outcomes.from_values(second))
    assert differ is not None
    assert (differ.won, differ.lost) == (6, 0)
    assert differ.p_value == pytest.approx(reference.binomtest(6, 6, alternative="greater").pvalue)
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.random((2, 1, 40)) < 0.8
        found = rows_that_differ(Outcomes.from_values(a), Outcomes.from_values(b))
        assert found is not None
        expected = reference.binomtest(found.won, max(1, found.won + found.lost), alternative="greater").pvalue
        assert found.p_value == pytest.approx(expected if found.won + found.lost else 1.0)


def test_signs_of_unequal_differences_are_counted_out() -> None:
    differences = np.array([3, -1, 2, 2, 0])
    signs = np.array([[1 if bits >> k & 1 else -1 for k in range(4)] for bits in range(16)])
    expected = float((signs @ np.array([3, 1, 2, 2]) >= 6).mean())
    assert flipped(differences) == pytest.approx(expected)


def test_a_lead_on_three_rows_leaves_nobody_out() -> None:
    """A bootstrap of 300 rows sees 3 to 0 as more than luck; three tosses of a coin are not."""
    first, second = np.ones((3, 300)), np.ones((3, 300))
    second[:, :3] = 0
    result = compare({"a": Outcomes.from_values(first), "b": Outcomes.from_values(second)})
    assert result.indistinguishable == ("a", "b")
    assert result["b"].low <= result["b"].difference <= 0 <= result["b"].high + 1e-12
    assert any("differ on 3 test rows (3 to 0)" in warning for warning in result.warnings)
    second[:, :12] = 0
    assert compare({"a": Outcomes.from_values(first), "b": Outcomes.from_values(second)}).winner == "a"


def test_one_seed_calls_nothing_the_best() -> None:
    rng = np.random.default_rng(0)
    good, bad = draw(rng, 2.0, seeds=1, examples=800)[0], draw(rng, 0.0, seeds=1, examples=800)[0]
    result = compare({"good": good, "bad": bad})
    assert result.conditional
    assert result.winner is None
    assert not result["bad"].may_be_best
    assert result.sentence.startswith("With one seed each, good scored highest of 2 methods")
    assert "is the best of" not in result.sentence
    alone = compare({"good": good, "bad": bad}, seedless=["good", "bad"])
    assert (alone.conditional, alone.winner) == (False, "good")


def test_probabilities_of_being_the_best_sum_to_one() -> None:
    methods = dict(zip("abc", draw(np.random.default_rng(1), 1.0, 1.0, -1.0), strict=True))
    result = compare({**methods, "d": methods["a"]})
    chances = {one.method: one.probability or 0.0 for one in result.standings}
    assert sum(chances.values()) == pytest.approx(1)
    assert chances["a"] == pytest.approx(chances["d"], abs=0.02)
    assert chances["c"] < 0.01
    assert compare({"a": methods["a"]})["a"].probability == 1


def test_what_a_design_shows_is_shown_as_often_as_stated() -> None:
    gap = smallest_difference(1000, 3, 2, disagreement=0.2, seed_spread=0.01)
    rng, seen = np.random.default_rng(0), 0
    for _ in range(200):
        shift = gap + rng.normal(0, 0.01, (3, 1))
        drawn = rng.random((3, 1000))
        won, lost = 0.1 + shift / 2, 0.1 - shift / 2
        difference = np.where(drawn < won, 1.0, np.where(drawn < won + lost, -1.0, 0.0))
        seen += difference_interval(
            Outcomes.from_values(difference, bounds=None), Outcomes.from_values(np.zeros((3, 1000))), resamples=200
        ).low > 0  # fmt: skip
    assert seen / 200 >= 0.7
    # rows alone do not help where seeds differ, and seeds alone do not where rows are few
    assert smallest_difference(10**6, 3, 4) > 0.03
    assert smallest_difference(100, 50, 4) > 0.1
    assert smallest_difference(1000, 5, 4) < smallest_difference(1000, 3, 4)


def test_rows_of_one_group_are_drawn_together() -> None:
    groups = np.repeat(np.arange(20), 5)
    counts = draw_counts(100, 50, 0, groups)
    assert (counts.reshape(50, 20, 5) == counts.reshape(50, 20, 5)[..., :1]).all()
    assert (counts[:, ::5].sum(axis=1) == 20).all()
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((1, 20)) < 0.7, 5, axis=1)  # five rows that say the same are one row
    aware = score_interval(Outcomes.from_values(same).grouped(groups))
    alone = score_interval(Outcomes.from_values(same))
    single = score_interval(Outcomes.from_values(same[:, ::5]))
    assert aware.high - aware.low > 1.5 * (alone.high - alone.low)
    assert aware.high - aware.low == pytest.approx(single.high - single.low, rel=0.15)


def test_groups_of_one_row_change_nothing_but_students_factor() -> None:
    values = Outcomes.from_values(np.random.default_rng(0).random((2, 60)) < 0.7)
    grouped = values.grouped(np.arange(60))
    assert grouped.influence() == pytest.approx(values.influence())
    uneven = np.sort(np.random.default_rng(1).integers(0, 12, 60))
    truth = np.random.default_rng(2).integers(0, 2, 60)
    given = np.where(np.random.default_rng(3).random((2, 60)) < 0.8, truth, 1 - truth)
    fast = Outcomes.from_labels(given, truth, "matthews").grouped(uneven)
    codes = np.unique(uneven, return_inverse=True)[1]
    slow = CallableOutcomes(
        given.tolist(),
        truth.tolist(),
        lambda p, r: float(sklearn.matthews_corrcoef(r, p)),
        "matthews",
        (-1, 1),
        60,
        codes,
    )
    assert slow.influence() == pytest.approx(fast.influence())


def _equal_and_apart(chance: np.random.Generator, draws: float) -> tuple[list[Outcomes], list[Outcomes]]:
    """Two equally good methods, and two that differ by some four points; three seeds, 600 rows.

    `draws`: spread of the training rows that both share.
    """
    row, shared = chance.normal(0, 2, 600), chance.normal(0, 1, (3, 1)) * draws
    made = [
        Outcomes.from_values(
            chance.random((3, 600)) < special.expit(skill + shared + chance.normal(0, 0.05, (3, 1)) + row)
        )
        for skill in (2.0, 2.0, 2.0, 1.5)
    ]
    return made[:2], made[2:]


def test_seeds_on_the_same_training_rows_tell_more_than_pairs_of_seeds_do() -> None:
    chance, called, found, paired_found = np.random.default_rng(5), 0, 0, 0
    for study in range(120):
        equal, apart = _equal_and_apart(chance, 0.0)
        same = compare(dict(zip("ab", equal, strict=True)), resamples=20, seed=study, paired_seeds=False)
        called += same.winner is not None
        methods = dict(zip("ab", apart, strict=True))
        found += compare(methods, resamples=20, seed=study, paired_seeds=False).winner == "a"
        paired_found += compare(methods, resamples=20, seed=study).winner == "a"
    assert called <= 10  # 5 % of 120, and three standard deviations
    assert found > 1.15 * paired_found


def test_of_seeds_with_training_rows_of_their_own_pairs_tell_more() -> None:
    chance, found, paired_found = np.random.default_rng(6), 0, 0
    for study in range(60):
        methods = dict(zip("ab", _equal_and_apart(chance, 0.6)[1], strict=True))
        found += compare(methods, resamples=20, seed=study, paired_seeds=False).winner == "a"
        paired_found += compare(methods, resamples=20, seed=study).winner == "a"
    assert paired_found > 1.5 * found


def test_the_spread_of_two_methods_with_seeds_of_their_own_is_the_sum_of_theirs() -> None:
    methods = _varied(4, count=2)[:2]
    pairs = pairs_of(methods, paired_seeds=False)
    first, second = (float(one.points().var(ddof=1)) for one in methods)
    assert pairs.spread[0, 1] == pytest.approx(first + second)
    assert pairs.degrees[0, 1] == pytest.approx((first + second) ** 2 / (first**2 / 3 + second**2 / 3))
    total = pairs.examples[0, 1] + max(0.0, first + second - pairs.interaction[0, 1]) / 4
    degrees = pairs.degrees[0, 1] * total**2 / ((first + second) / 4) ** 2
    wanted = special.stdtrit(degrees, 0.975) * np.sqrt(total)
    assert pairs.half_widths(np.array([0.025]), np.array([0]), np.array([1]))[0] == pytest.approx(wanted)
    # two methods without any spread over seeds are told apart by their rows alone, and one beside itself has no width
    still = [Outcomes(np.repeat(one.statistics[:1], 3, axis=0), one.score) for one in methods]
    for one, other in ((still[0], still[1]), (still[0], still[0])):
        alone = pairs_of([one, other], paired_seeds=False)
        width = alone.half_widths(np.array([0.025]), np.array([0]), np.array([1]))[0]
        assert width == pytest.approx(special.ndtri(0.975) * np.sqrt(alone.examples[0, 1]))
    assert pairs_of([*methods, still[0]], paired_seeds=False).paired_seeds  # of three, pairs tell of each other


def test_a_design_shows_more_where_all_seeds_have_the_same_training_rows() -> None:
    assert smallest_difference(1000, 3, 2, paired_seeds=False) < 0.75 * smallest_difference(1000, 3, 2)
    assert smallest_difference(1000, 1, 2, paired_seeds=False) == smallest_difference(1000, 1, 2)


def _board(task: str, *right: list[float], paired_seeds: bool = True) -> TaskScores:
    """Methods a, b, ... of which each run answers so many of 40 rows right."""
    rows = np.arange(40)
    named = zip("abcdef", right, strict=False)
    made = {name: Outcomes.from_values([rows < 40 * share for share in runs]) for name, runs in named}
    return TaskScores(task, made, paired_seeds)


def test_a_summary_averages_ranks_and_shares_of_runs_over_boards() -> None:
    boards = [_board("x", [0.9, 0.8], [0.7, 0.85]), _board("y", [0.6, 0.6], [0.6, 0.5], [0.9, 0.9])]
    over = summarize(boards)
    assert over is not None
    assert (over.leader, over.boards, over.left_out, over.single) == ("a", 2, ("c",), False)
    first, second = over.methods
    assert (first.mean_rank.value, first.improvement) == (1.0, None)
    assert second.mean_rank.value == 2.0
    # On x three of four pairs of runs are won, on y two, and two are equal.
    assert second.improvement is not None
    assert second.improvement.value == pytest.approx((3 / 4 + 3 / 4) / 2)
    for share in (first.mean_rank, second.mean_rank, second.improvement):
        assert share.low <= share.value <= share.high
    assert "c" in over.sentence
    assert summarize(boards[:1]) is None
    assert summarize([boards[0], _board("z", [0.5])]) is None


def test_equal_methods_share_a_rank_and_few_runs_that_all_won_are_not_certain() -> None:
    over = summarize([_board(task, [0.9] * 3, [0.1] * 3, [0.1] * 3) for task in "xy"])
    assert over is not None
    assert [one.mean_rank.value for one in over.methods] == [1.0, 2.5, 2.5]
    assert over.methods[0].mean_rank.high == 1.0
    assert over.methods[1].improvement is not None
    assert (over.methods[1].improvement.value, over.methods[1].improvement.high) == (1.0, 1.0)
    assert 0.5 < over.methods[1].improvement.low < 0.65  # six comparisons of six, Wilson


def test_a_summary_holds_the_true_ranks_of_methods_that_are_almost_alike() -> None:
    chance, held = np.random.default_rng(3), 0
    skills = np.array([[1.0, 1.0, 0.9], [0.8, 0.8, 0.8]])  # true ranks: 1.5 and 2, 1.5 and 2, 3 and 2
    for study in range(60):
        boards = []
        for task, skill in zip("xy", skills, strict=True):
            rows = chance.normal(0, 2, 300)
            runs = {
                name: chance.random((3, 300)) < special.expit(s + rows + chance.normal(0, 0.2, (3, 1)))
                for name, s in zip("abc", skill, strict=True)
            }
            boards.append(TaskScores(task, {name: Outcomes.from_values(run) for name, run in runs.items()}, False))
        over = summarize(boards, resamples=200, seed=study)
        assert over is not None
        true = {"a": 1.75, "b": 1.75, "c": 2.5}
        held += sum(one.mean_rank.low <= true[one.method] <= one.mean_rank.high for one in over.methods)
    assert held / 180 >= 0.93


@pytest.mark.parametrize("rows", [1, 40])
def test_of_one_group_of_rows_nothing_is_claimed_about_others(rows: int) -> None:
    groups, chance = np.zeros(rows, dtype=np.int64), np.random.default_rng(0)
    good, bad = (Outcomes.from_values(np.full((2, rows), value), bounds=None).grouped(groups) for value in (0.9, 0.1))
    result = compare({"good": good, "bad": bad})
    assert result.winner is None
    assert result.indistinguishable == ("good", "bad")
    assert [one.probability for one in result.standings] == [0.5, 0.5]
    assert any("nothing is known of others" in warning for warning in result.warnings)
    right = Outcomes.from_values(chance.random((1, rows)) < 2).grouped(groups)
    interval = score_interval(right)
    assert "cannot be told" in interval.sentence
    assert interval.low < 0.3  # one group of rows says no more than one row


def test_rows_of_groups_that_are_all_right_count_as_their_groups() -> None:
    right = Outcomes.from_values(np.ones((2, 60)))
    assert score_interval(right.grouped(np.repeat(np.arange(6), 10))).low < score_interval(right).low - 0.2


def test_methods_that_score_the_same_are_not_ranked_in_words() -> None:
    same = Outcomes.from_values(np.tile([1.0, 0.0], (2, 30)))
    result = compare({"a": same, "b": same})
    assert result.highest == ("a", "b")
    assert result.sentence.startswith("a and b tie for the highest score and cannot be told apart: ")
    one = compare({"a": same.first(60), "b": same, "c": Outcomes.from_values(np.tile([1.0, 0.0, 0.0], (2, 20)))})
    assert one.sentence.startswith("a and b tie for the highest score and cannot be told apart")


def test_scores_that_rounding_alone_tells_apart_are_equal() -> None:
    halves, thirds = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0.3, 0.1, 0.4, 0.2]])
    assert halves.mean() != pytest.approx(0, abs=1e-6)
    one, other = (Outcomes.from_values(np.repeat(values, 2, axis=0)) for values in (halves, thirds + 1e-15))
    result = compare({"b": one, "a": other})
    assert result.highest == ("a", "b")
    assert any("scored the same" in warning for warning in result.warnings)


def test_a_score_at_the_end_of_its_range_is_not_certain() -> None:
    nothing = Outcomes.from_statistics(
        np.zeros((1, 9, 1)), lambda means: 2 * means[..., 0] - 1, "matthews", (-1.0, 1.0)
    )
    interval = score_interval(nothing)
    assert interval.low == -1.0
    assert interval.high > -0.6  # Wilson's 0.3 of a range of 2


RARE = np.array(["urgent"] * 5 + ["usual"] * 995)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "balanced_accuracy", "matthews"])
def test_a_perfect_score_is_as_certain_as_the_rows_of_its_rarest_class(metric: str) -> None:
    positive = "urgent" if metric == "f1" else None
    outcomes = Outcomes.from_labels(RARE, RARE, metric, positive)
    missed = reference.binomtest(5, 5).proportion_ci(0.95, "wilson").low  # 0.566 of five rows
    given = (
        np.array([missed * 5, 5 * (1 - missed), 0, 0, 995, 0]) / 1000
    )  # cells of the table, "other" last of each class
    interval = score_interval(outcomes)
    assert interval.high == 1
    assert interval.low <= float(outcomes.score(given)) + 1e-9
    assert interval.low > 0.5  # and not that of one row
    # Five rows of one group, such as one patient, are one.
    together = np.concatenate([np.zeros(5, dtype=int), np.arange(1, 996)])
    assert score_interval(outcomes.grouped(together)).low < interval.low - 0.1


def test_a_rare_class_that_is_never_found_may_be() -> None:
    interval = score_interval(Outcomes.from_labels(np.full(1000, "usual"), RARE, "f1", "urgent"))
    found = reference.binomtest(0, 5).proportion_ci(0.95, "wilson").high
    assert interval.low == 0
    assert interval.high == pytest.approx(2 * found / (1 + found))
    nothing = Outcomes.from_statistics(
        np.eye(6)[np.full((1, 20), 4)], lambda means: means[..., 0], "recall:urgent", (0.0, 1.0), ("urgent", "usual")
    )
    assert (score_interval(nothing).low, score_interval(nothing).high) == (0, 1)  # no row has the class


def test_mistakes_in_a_common_class_do_not_make_a_rare_one_certain() -> None:
    given = RARE.copy()
    given[-100:] = "urgent"
    interval = score_interval(Outcomes.from_labels(given, RARE, "balanced_accuracy"))
    assert interval.low < 0.95 - 0.5 * 0.434
    even = np.array(["a", "b"] * 500)
    answered = np.where(np.arange(1000) % 10 < 2, np.roll(even, 1), even)
    sides = score_interval(Outcomes.from_labels(answered, even, "balanced_accuracy"))
    share = score_interval(Outcomes.from_labels(answered, even))  # of equal classes the same number
    assert sides.high - sides.low == pytest.approx(share.high - share.low, rel=0.05)  # where both vary nothing is added


def test_the_exact_test_is_one_of_any_measure() -> None:
    """All ways to swap the rows that differ, each with the score taken anew."""
    rng = np.random.default_rng(2)
    truth = np.array(["urgent"] * 6 + ["usual"] * 54)
    first, second = truth.copy(), truth.copy()
    second[:4], first[4] = "usual", "usual"
    for row in (20, 30, 40):
        (first if rng.random() < 0.5 else second)[row] = "urgent"
    differ = np.flatnonzero(first != second)
    for metric in ("balanced_accuracy", "f1", "matthews"):
        positive = "urgent" if metric == "f1" else None
        found = rows_that_differ(*(Outcomes.from_labels(one, truth, metric, positive) for one in (first, second)))
        assert found is not None
        assert found.few
        swapped = np.array(
            [[bits >> k & 1 for k in range(len(differ))] for bits in range(2 ** len(differ))], dtype=bool
        )
        a, b = np.tile(first, (len(swapped), 1)), np.tile(second, (len(swapped), 1))
        a[:, differ], b[:, differ] = (
            np.where(swapped, second[differ], first[differ]), np.where(swapped, first[differ], second[differ])
        )  # fmt: skip
        leads = [Outcomes.from_labels(one, truth, metric, positive).points() for one in (a, b)]
        lead = leads[0] - leads[1]
        assert found.p_value == pytest.approx(float((lead >= lead[0] - 1e-12).mean())), metric


@pytest.mark.parametrize("metric", ["recall:urgent", "balanced_accuracy"])
def test_four_rows_of_a_rare_class_make_nothing_the_best(metric: str) -> None:
    from dollartune import metrics

    truth = np.array([0] * 5 + [1] * 995)
    answers = np.stack([truth, truth])
    answers[1, 1:5] = 1  # one of five found
    answers[0, 5:105] = answers[1, 105:205] = -1  # many other rows differ, and are no evidence
    made = [
        Outcomes.from_statistics(table.values[None], table.score, metric, (0.0, 1.0), ("urgent", "usual"))
        for one in answers
        if (table := metrics.get(metric).statistics_of_labels(one, truth, ("urgent", "usual"))) is not None
    ]
    differ = rows_that_differ(*made)
    assert differ is not None
    assert 1 / 32 < differ.p_value <= 1 / 16 + 1e-12
    result = compare({"a": made[0], "b": made[1]}, seedless=["a", "b"])
    assert result.winner is None
    assert result.indistinguishable == ("a", "b")
    assert any("that move the score" in warning for warning in result.warnings)


def test_four_rows_do_not_lift_a_method_above_a_baseline() -> None:
    method, majority = np.ones((1, 1000)), np.ones((1, 1000))
    majority[0, :4] = 0
    made = {"lora": Outcomes.from_values(method)}
    (against,) = compare(made, baselines={"majority": Outcomes.from_values(majority)}).against
    assert (against.low, against.above) == (0.0, False)
    majority[0, :8] = 0
    (against,) = compare(made, baselines={"majority": Outcomes.from_values(majority)}).against
    assert against.above
    (under,) = compare(
        {
            "lora": Outcomes.from_values(
                1 - np.eye(1000)[:1] - np.eye(1000)[1:2] - np.eye(1000)[2:3] - np.eye(1000)[3:4]
            )
        },
        baselines={"majority": Outcomes.from_values(np.ones((1, 1000)))},
    ).against
    assert not under.below


def test_a_sentence_rounds_no_score_onto_a_perfect_one() -> None:
    """One wrong row of 2,500, and one that tells two methods apart."""
    right, wrong = np.ones((1, 2500)), np.ones((1, 2500))
    wrong[0, 0] = 0
    assert "is 0.9996, and" in score_interval(Outcomes.from_values(wrong)).sentence
    assert (
        "The first is 0.0004 above"
        in difference_interval(Outcomes.from_values(right), Outcomes.from_values(wrong)).sentence
    )
    said = compare({"a": Outcomes.from_values(right), "b": Outcomes.from_values(wrong)})
    assert any("differ by 0.0004" in warning for warning in said.warnings)
    assert "99.9 % confidence" in score_interval(Outcomes.from_values(wrong), level=0.999).sentence


def test_one_row_tells_nothing_of_others_whatever_its_score() -> None:
    """Nothing varies, so that resamples see no error."""
    made = {
        name: Outcomes.from_values(np.full((2, 1), score), "rougeL", (0.0, 1.0))
        for name, score in (("a", 0.4), ("b", 0.2))
    }
    alone = score_interval(made["a"])
    assert (alone.value, alone.low, alone.high) == (pytest.approx(0.4), 0, 1)
    between = difference_interval(made["a"], made["b"])
    assert (between.low, between.high) == (-1, 1)
    result = compare({"a": made["a"]}, baselines={"words": made["b"]})
    assert not result.against[0].above
    assert "there is no other method to compare it with" in result.sentence
