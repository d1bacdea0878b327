"""The rest of the money is given back where further runs would not change what is handed over, and not before."""

from __future__ import annotations

import numpy as np
import pytest

from dollartune.schedule.settled import SETTLED, stays_best


def test_two_runs_say_nothing_three_say_something_and_no_further_runs_change_nothing() -> None:
    assert stays_best([0.8, 0.8], 0.8, 0.02, 1) == 0.0
    assert stays_best([0.8, 0.8, 0.8], 0.8, 0.02, 1) > 0.5
    assert stays_best([0.8, 0.9], 0.9, 0.02, 0) == 1.0


def test_a_study_claims_no_more_than_its_other_claims() -> None:
    assert SETTLED == 0.95, "the level of every interval and comparison"


def test_equal_scores_of_few_rows_are_not_taken_for_certainty() -> None:
    """Three runs that have the same of 100 rows right: the fourth may well be better."""
    assert stays_best([0.8, 0.8, 0.8], 0.8, 0.04, 1) < SETTLED
    assert stays_best([0.8] * 6, 0.8, 0.04, 1) > SETTLED


@pytest.mark.parametrize("further", [1, 4])
def test_more_runs_or_a_wider_spread_leave_more_to_hope_for(further: int) -> None:
    narrow = stays_best([0.80, 0.81, 0.80, 0.79, 0.82], 0.82, 0.02, further)
    wide = stays_best([0.70, 0.82, 0.65, 0.79, 0.75], 0.82, 0.02, further)
    assert wide < narrow
    assert stays_best([0.80, 0.81, 0.80, 0.79, 0.82], 0.82, 0.02, further + 3) < narrow


def test_the_probability_is_kept(rng: np.random.Generator) -> None:
    """Worlds of unknown mean and spread, rows that are noisy: of those that are called settled, fewer than said change."""
    called = changed = 0
    for _ in range(4000):
        spread, noise, further = rng.uniform(0.002, 0.05), rng.uniform(0.01, 0.04), int(rng.integers(1, 5))
        scores = rng.normal(0.8, np.hypot(spread, noise / 2), 6)
        best, later = scores.max(), rng.normal(0.8, np.hypot(spread, noise / 2), further)
        if stays_best(scores.tolist(), best, noise, further) >= SETTLED:
            called += 1
            changed += bool(later.max() > best + noise)
    assert called > 200
    assert changed / called < 1 - SETTLED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
