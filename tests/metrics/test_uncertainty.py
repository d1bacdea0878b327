"""A score's standard error is that of its own measure, and not of a share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dollartune import metrics
from dollartune.metrics import standard_error


def labels(count: int, rare: float, right: float, seed: int) -> tuple[list[str], list[str]]:
    """Predictions and references of two classes, of which one is rare."""
    chance = np.random.default_rng(seed)
    expected = ["rare" if chance.random() < rare else "common" for _ in range(count)]
    other = {"rare": "common", "common": "rare"}
    return [label if chance.random() < right else other[label] for label in expected], expected


def test_a_share_has_the_error_of_a_share() -> None:
    error = standard_error(metrics.get("accuracy"), ["a"] * 80 + ["b"] * 20, ["a"] * 100)
    assert error == pytest.approx(math.sqrt(0.8 * 0.2 / 99))


@pytest.mark.parametrize(
    ("name", "rare", "right"),
    [
        ("matthews", 0.3, 0.6),
        ("matthews", 0.5, 0.9),
        ("f1", 0.1, 0.8),
        ("balanced_accuracy", 0.08, 0.8),
        ("recall:rare", 0.05, 0.7),
        ("f1:rare", 0.1, 0.8),
    ],
)
def test_it_is_as_large_as_scores_of_other_rows_differ(name: str, rare: float, right: float) -> None:
    measure = metrics.get(name)
    drawn = [labels(210, rare, right, seed) for seed in range(300)]
    spread = np.std([measure.score(*one) for one in drawn])
    errors = [standard_error(measure, *one) for one in drawn[:40]]
    assert np.median(errors) == pytest.approx(spread, rel=0.2)


def test_an_area_is_uncertain_by_its_rarer_class() -> None:
    def draw(seed: int) -> tuple[list[dict[str, float]], list[str]]:
        chance = np.random.default_rng(seed)
        expected = ["rare"] * 12 + ["common"] * 200
        scores = [chance.normal(1.0 if label == "rare" else 0.0) for label in expected]
        return [{"rare": score, "common": -score} for score in scores], expected

    measure = metrics.get("auc")
    spread = np.std([measure.score(*draw(seed)) for seed in range(200)])
    errors = [standard_error(measure, *draw(seed)) for seed in range(5)]
    assert np.median(errors) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize(("name", "width"), [("matthews", 2.0), ("accuracy", 1.0), ("f1", 1.0)])
@pytest.mark.parametrize("count", [1, 100])
def test_what_no_example_changes_is_still_uncertain(name: str, width: float, count: int) -> None:
    answers: Any = ["a"] * count
    assert standard_error(metrics.get(name), answers, answers) == pytest.approx(0.5 * width / math.sqrt(count))


def test_texts_have_the_error_of_their_measure() -> None:
    answers, references = ["a cat sat on the mat"] * 10 + ["no"] * 10, ["a cat sat on the mat"] * 20
    assert 0.05 < standard_error(metrics.get("bleu"), answers, references) < 0.4
    assert standard_error(metrics.get("rougeL"), answers, references) == pytest.approx(
        math.sqrt(0.25 * 20 / 19 / 20), rel=0.05
    )


def test_a_class_that_is_always_found_is_as_certain_as_its_rows() -> None:
    answers: Any = ["rare"] * 4 + ["common"] * 96
    assert standard_error(metrics.get("recall:rare"), answers, answers) == pytest.approx(0.25)
