"""The settings that a search tried: rows, places on an axis, and which setting the scores follow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.report.tries import importances, places, tries_table
from dollartune.trials.record import Cost


def tried(number: int, score: float | None, **settings: Any) -> Any:
    label = f"lora({number})"
    trial = SimpleNamespace(label=label, group="lora", baseline=False, methods=[{"method": "lora", **settings}])
    return SimpleNamespace(id=f"t{number}", trial=trial, validation_score=score, cost=Cost(seconds=1.0))


RECORDS = [tried(n, 0.5 + 0.04 * n, lr=10.0 ** (-5 + n % 6 / 2), rank=(2, 8)[n % 2], where="q") for n in range(9)]


def test_rows_hold_what_varies_best_first() -> None:
    rows = tries_table([*RECORDS, tried(9, None, lr=1.0, rank=2, where="q")])
    assert len(rows) == 9
    assert [row["validation"] for row in rows] == sorted((row["validation"] for row in rows), reverse=True)
    assert {"lr", "rank"} <= set(rows[0])
    assert "where" not in rows[0], "one value tells nothing"


def test_a_try_takes_what_it_would_take_alone() -> None:
    """Outputs of frozen layers that an earlier try had left make no later one quicker."""
    later = tried(9, 0.1, lr=1.0, rank=2, where="q")
    later.cost = Cost(seconds=1.0, features_seconds=3.0, features_booked_seconds=0.5)
    assert [row["seconds"] for row in tries_table([*RECORDS, later])] == [1.0] * 9 + [3.5]


def test_numbers_stand_by_value_and_names_in_order() -> None:
    assert places([2, 4, 6]) == [0.0, 0.5, 1.0]
    assert places([1e-5, 1e-4, 1e-3]) == pytest.approx([0.0, 0.5, 1.0])
    assert places(["b", None, "a"]) == [1.0, None, 0.0]
    assert places([3, 3]) == [0.0, 0.0]


def test_the_setting_that_decides_is_the_most_important() -> None:
    decisive = [tried(n, float(n % 2), lr=10.0 ** (-5 + n % 3), rank=(2, 8)[n % 2]) for n in range(12)]
    shares = importances(decisive)
    assert next(iter(shares)) == "rank"
    assert shares["rank"] == pytest.approx(1.0)
    assert shares["lr"] < 0.1
    assert importances(decisive[:2]) == {}
    three = [tried(n, score, lr=10.0**-n) for n, score in enumerate((0.5, 0.9, 0.6))]
    assert importances(three) == {}, "a group for each try explains anything"
    luck = [tried(n, score, lr=10.0 ** -(n % 3)) for n, score in enumerate((0.5, 0.9, 0.6, 0.8, 0.5, 0.7))]
    assert importances(luck)["lr"] == 0.0, "no more than chance"


def test_charts_are_drawn_of_three_tries_and_more() -> None:
    pytest.importorskip("altair")
    from dollartune.report.charts.tries import importance_chart, tries_chart

    drawn = tries_chart(RECORDS)
    assert drawn is not None
    spec = drawn.to_dict()
    points = next(iter(spec["datasets"].values()))
    assert {point["axis"] for point in points} == {"lr", "rank", "validation"}
    assert all(0 <= point["place"] <= 1 for point in points)
    assert tries_chart(RECORDS[:2]) is None
    assert importance_chart({}) is None
    assert importance_chart(importances(RECORDS)) is not None


def test_a_variant_is_shown_with_what_tells_it_from_its_sisters() -> None:
    from dollartune.study.varying_settings import shown_labels

    def variant(label: str, **settings: Any) -> Any:
        found = tried(0, 0.5, **settings)
        found.trial.label, found.trial.ablation = label, None
        return found

    ranks = [variant("lora", rank=8, lr=0.001), variant("lora(rank=2)", rank=2, lr=0.001)]
    assert shown_labels(ranks) == {"lora": "lora(rank=8)", "lora(rank=2)": "lora(rank=2)"}
    assert shown_labels(ranks[:1]) == {"lora": "lora"}, "alone it has no sister"
    two = [variant("lora", rank=8, lr=0.001), variant("lora(rank=2, lr=0.01)", rank=2, lr=0.01)]
    assert shown_labels(two)["lora"] == "lora(rank=8, lr=0.001)"
    part = variant("lora: drop mlp", rank=8, lr=0.001)
    part.trial.ablation = SimpleNamespace(of="lora", name="drop mlp")
    assert shown_labels([*ranks, part])["lora"] == "lora", "an ablation refers to it by this name"
