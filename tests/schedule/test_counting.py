"""What a person reads while a search or a race runs: trials are counted against a total that is known before they run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pretend import Pretended, learning_rate

from dollartune.study.progress import Lines


@pytest.fixture
def counted(study_of: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a study prints of its final trials: (number, total) of each line."""

    def run(**changes: Any) -> list[tuple[int, int]]:
        evaluation = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False}
        settings = study_of(
            **{"methods": ["lora", "bitfit"], "seeds": 3, "search": True, "evaluation": evaluation, **changes}
        )
        options = {key: settings.pop(key) for key in ("truth", "break_after", "at") if key in settings}
        Pretended(settings, options.pop("truth", learning_rate), display=Lines(), **options)
        lines = re.findall(r"^\[(\d+)/(\d+)\]", capsys.readouterr().out, re.MULTILINE)
        return [(int(number), int(total)) for number, total in lines]

    return run


@pytest.mark.parametrize("per", ["study", "method"])
@pytest.mark.parametrize("seconds", [20.0, 60.0, 300.0])
@pytest.mark.parametrize("scales", [[16], [8, 16]])
def test_final_trials_are_counted_to_a_total_that_is_known_before(
    counted: Any, per: str, seconds: float, scales: list[int]
) -> None:
    lines = counted(budget={"seconds": seconds, "per": per}, scales=scales)
    assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
    assert all(number <= total for number, total in lines)
    assert lines[-1][1] == len(lines)
    if len(scales) == 1 and per == "study":  # a race whose finalists stand when the first of them runs
        assert lines[0][1] <= len(lines)


def test_seeds_that_a_race_adds_are_counted_when_it_adds_them(counted: Any) -> None:
    lines = counted(budget={"seconds": 2000.0, "per": "study"}, truth=lambda trial: 0.8 + 0.001 * (trial.seed % 2))
    totals = [total for _, total in lines]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1] == len(lines)


@pytest.mark.parametrize("per", ["study", "method"])
def test_baselines_are_counted_to_the_same_total(counted: Any, per: str) -> None:
    lines = counted(budget={"seconds": 100.0, "per": per}, baselines=True)
    assert lines[0][1] > 3
    assert all(number <= total for number, total in lines)
    assert lines[-1] == (len(lines), len(lines))


@pytest.mark.parametrize("per", ["study", "method"])
def test_a_study_that_goes_on_counts_on(counted: Any, per: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"budget": {"seconds": 150.0, "per": per}, "name": per, "search": {"trials": 4, "pruner": "none"}}
    whole = counted(**{**settings, "name": "whole"})
    first = counted(**settings, break_after=6 if per == "method" else 14)  # among the first final trials
    assert first
    second = counted(**settings, at=60.0)
    assert [number for number, _ in second] == list(range(len(first) + 1, second[-1][1] + 1))
    assert second[-1][0] == second[-1][1] == len(whole)


def test_a_study_without_a_search_counts_what_it_lists(counted: Any) -> None:
    assert counted(search=None) == [(number, 6) for number in range(1, 7)]
