"""An advice in five lines, with what it costs."""

from __future__ import annotations

import pytest

from dollartune.advise import advise
from dollartune.advise.cost_here import RoughCost, beside_a_probe, rough_cost


@pytest.mark.parametrize(("examples", "task"), [(20, "classification"), (500, "generation"), (5000, "regression")])
def test_five_lines(examples: int, task: str) -> None:
    lines = advise(examples, task).short("about 2 min", "dollartune tune DATA").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["method", "why", "cost", "sure", "next"]
    assert lines[0].split()[1].strip(",") == advise(examples, task).recommended[0]
    assert all(len(line) < 400 for line in lines)


def test_costs_grow_with_rows_and_size_and_full_tuning_costs_more() -> None:
    lora = rough_cost("lora", 10**8, 1000, "a100-80gb")
    assert lora.dollars is not None
    assert lora.seconds < rough_cost("full", 10**8, 1000, "a100-80gb").seconds
    assert rough_cost("lora", 10**9, 1000, "a100-80gb").seconds == pytest.approx(10 * lora.seconds)
    assert rough_cost("lora", 10**8, 4000, "a100-80gb").seconds > lora.seconds
    assert rough_cost("linear_probe", 10**8, 1000, "a100-80gb").seconds < lora.seconds
    assert "a100-80gb" in lora.sentence


def test_the_budget_of_the_next_command_pays_for_the_training() -> None:
    assert RoughCost(780.0, None, "this machine").budget == "20 min"
    assert RoughCost(3.0, None, "this machine").budget == "5 min"


def test_the_cheapest_way_to_a_classifier_stands_beside_it() -> None:
    assert "linear_probe, a classifier fitted" in beside_a_probe("full", 10**8, 500, "a100-80gb")
    assert beside_a_probe("linear_probe", 10**8, 500, "a100-80gb") == ""
