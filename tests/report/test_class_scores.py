"""Precision, recall, calibration and tries, on rows small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dollartune.report.class_scores import calibration, calibration_error, class_scores, confusion


def row(expected: str, predicted: str | None, sure: float = 0.75) -> dict[str, Any]:
    probabilities = {"a": sure, "b": 1 - sure} if predicted == "a" else {"b": sure, "a": 1 - sure}
    return {
        "expected": expected,
        "predicted": predicted,
        "correct": expected == predicted,
        "probabilities": probabilities,
    }


ROWS = [row("a", "a"), row("a", "a"), row("a", "b"), row("b", "b"), row("b", None)]


def test_counts_and_scores_by_hand() -> None:
    assert confusion(ROWS) == {("a", "a"): 2, ("a", "b"): 1, ("b", "b"): 1, ("b", "other"): 1}
    a, b = class_scores(ROWS, ["a", "b"])
    assert (a.precision, a.recall, a.rows) == (1.0, pytest.approx(2 / 3), 3)
    assert (b.precision, b.recall) == (0.5, 0.5)
    assert a.f1 == pytest.approx(0.8)
    (never,) = class_scores(ROWS, ["c"])
    assert (never.precision, never.recall, never.f1, never.rows) == (None, None, 0.0, 0)


def test_calibration_by_hand() -> None:
    rows = [row("a", "a", 0.9), row("a", "a", 0.9), row("b", "a", 0.9), row("b", "b", 0.6)]
    low, high = calibration(rows)
    assert (low.confidence, low.accuracy, low.rows) == (pytest.approx(0.6), 1.0, 1)
    assert (high.confidence, high.accuracy, high.rows) == (pytest.approx(0.9), pytest.approx(2 / 3), 3)
    assert calibration_error([low, high]) == pytest.approx((1 * 0.4 + 3 * (0.9 - 2 / 3)) / 4)
    assert calibration([{**rows[0], "probabilities": None}]) == []
    assert calibration_error([]) is None
