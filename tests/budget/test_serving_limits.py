"""Limits of what is served: how they are written, what is over them, and what a study does with what is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.serving_limits import ServingCost, ServingLimits, parse_limits
from dollartune.errors import UserError
from dollartune.evaluate.cost import RequestCost, request_cost
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.tuning import hand_over, nothing_handed_over, refuse_other_work, standings


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ("20 ms", ServingLimits(seconds=0.02)),
        ("0.5s", ServingLimits(seconds=0.5)),
        ("500 MiB", ServingLimits(peak_bytes=500 * 2**20)),
        ("2 GB", ServingLimits(peak_bytes=2e9)),
        ("1.5 kb", ServingLimits(peak_bytes=1500)),
        ("3MB", ServingLimits(peak_bytes=3e6)),
        ("4 KiB", ServingLimits(peak_bytes=4096)),
        ("1 GiB", ServingLimits(peak_bytes=2**30)),
        ("$0.10 per 1000", ServingLimits(dollars_per_1000=0.1)),
        ("$1/1,000 requests", ServingLimits(dollars_per_1000=1.0)),
        (["20 ms", "500 MiB"], ServingLimits(seconds=0.02, peak_bytes=500 * 2**20)),
        ([], None),
    ],
)
def test_limits_as_people_write_them(written: Any, limits: ServingLimits | None) -> None:
    assert parse_limits(written) == limits
    study = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"]}
    settings = load_study({**study, "limits": written})
    assert settings.limits == limits
    assert load_study(settings.model_dump()) == settings


def test_limits_are_printed_in_the_larger_unit_from_one_of_it_on() -> None:
    assert str(ServingLimits(seconds=0.0214, peak_bytes=1023 * 2**20)) == "21.4 ms, 1023 MiB"
    assert (
        str(ServingLimits(seconds=1.0, peak_bytes=1.5 * 2**30, dollars_per_1000=0.1)) == "1 s, 1.5 GiB, $0.10 per 1,000"
    )


@pytest.mark.parametrize("written", ["fast", "20", "0 ms", ["20 ms", "30 ms"], "$1", 3])
def test_what_is_no_limit_is_told_with_examples(written: Any) -> None:
    with pytest.raises(UserError, match="limit"):
        load_study({"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"], "limits": written})


def test_each_limit_is_held_against_its_figure() -> None:
    cost = ServingCost(0.03, 600 * 2**20, 0.2)
    limits = ServingLimits(seconds=0.02, peak_bytes=500 * 2**20, dollars_per_1000=0.1)
    assert limits.exceeded(cost) == [
        "30 ms a request (limit: 20 ms)", "600 MiB of memory (limit: 500 MiB)", "$0.20 per 1,000 requests (limit: $0.10)",
    ]  # fmt: skip
    assert limits.excess(cost) == pytest.approx(2.0)
    assert ServingLimits(seconds=0.03).exceeded(cost) == []
    assert limits.exceeded(ServingCost(0.01, 1, None)) == []


def test_what_is_dearer_to_serve_is_measured_and_not_trained(
    study_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def slow_lora(evaluator: Any, adapter: Any, methods: Any, *others: Any) -> RequestCost:
        asked.append(methods[0].name)
        real = request_cost(evaluator, adapter, methods, *others)
        assert real.peak_bytes >= sum(p.nbytes for p in evaluator.backbone.model.parameters())
        return RequestCost(8, 0.01, 0.03 if methods[0].name == "lora" else 0.01, 9.0, 0, 1000)

    monkeypatch.setattr("dollartune.engines.cohort_worker.request_cost", slow_lora)
    settings = study_of(methods=["bitfit", "lora", "lora(lr=0.01)"], limits="20 ms", keep_adapters="all")
    study = Study(settings)
    results = study.run()
    assert asked == ["bitfit", "lora"], "once, whatever the rate"
    assert {record.trial.group for record in results.done()} == {"bitfit"}
    failed = results.failed()
    assert [(record.error.kind, record.training) for record in failed] == [("limit", None)] * 2
    best = hand_over(study.store, tmp_path / "adapter")
    assert best is not None
    assert best.trial.group == "bitfit"
    assert any("not tuned: 30 ms a request (limit: 20 ms)" in line for line in standings(study.store, best))
    refuse_other_work(study.store, study.settings)
    with pytest.raises(UserError, match="begun with 20 ms"):
        refuse_other_work(study.store, study.settings.model_copy(update={"limits": None}))


def test_where_nothing_keeps_the_limit_the_nearest_is_named(study_of: Any, tmp_path: Path) -> None:
    study = Study(study_of(methods=["bitfit"], limits=["0.001 ms", "1 GiB"]))
    study.run()
    assert hand_over(study.store, tmp_path / "adapter") is None
    message = nothing_handed_over(study.store, study.settings.limits).message
    assert "keeps the limit of 0.001 ms, 1 GiB" in message
    assert "Nearest is bitfit" in message
    assert "a request (limit: 0.001 ms)" in message
