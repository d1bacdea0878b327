"""An advice in five lines, with what it costs."""

from __future__ import annotations

import pytest

from dollartune.advise import advise
from dollartune.advise.cost_here import rough_cost


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
