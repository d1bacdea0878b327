"""What a race is run for: with less money runs are shorter (to a third), then settings fewer, then seeds."""

from __future__ import annotations

from typing import Any

import pytest

from dollartune.methods.space import LogUniform
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule.race_plan import LENGTHS, RacePlan, affordable_plan, rung_fractions
from dollartune.schedule.search_space import SearchSpace

COST = TrialCost(
    steps=300, seconds_per_step=0.1, validations=3.0, seconds_per_validation=0.1, try_seconds=1, final_seconds=2
)


def plan_for(money: float, trial_costs: dict[str, TrialCost] | None = None, **changes: Any) -> RacePlan:
    """Of a race of three methods that cost the same, if nothing else is said."""
    trial_costs = dict.fromkeys(("lora", "ia3", "bitfit"), COST) if trial_costs is None else trial_costs
    spaces = {name: SearchSpace(name, (), {"lr": LogUniform(1e-4, 1e-2)}) for name in trial_costs}
    settings = {"settings": 4, "seeds": 3, "reserve": 0.0, **changes}
    return affordable_plan(trial_costs, spaces, money=money, **settings)


def test_enough_money_pays_for_everything() -> None:
    assert plan_for(1e6) == RacePlan(4, 3, 1.0, (1 / 9, 1 / 3, 1.0))


def test_less_money_makes_runs_shorter_then_takes_settings_then_seeds() -> None:
    plans = [plan_for(money) for money in (2000, 400, 150, 30)]
    assert [(one.settings, one.seeds, one.whole) for one in plans] == [
        (4, 3, 1.0),
        (4, 3, 0.7),
        (1, 3, 0.25),
        (1, 2, 0.045),
    ]


def test_no_money_is_the_shortest_race_of_one_setting_and_seed() -> None:
    assert plan_for(0.1) == RacePlan(1, 1, LENGTHS[-1], (1.0,))


@pytest.mark.parametrize("reserve", [0.0, 0.5])
def test_a_race_costs_no_more_than_its_money(reserve: float) -> None:
    plans = plan_for(300, reserve=reserve)
    arms = [3 * plans.settings, 3 * -(-plans.settings // 3)]
    search = sum(count * COST.tried(plans.whole * f) for count, f in zip(arms, plans.fractions[:-1], strict=False))
    assert search + 3 * plans.seeds * COST.final(plans.whole, reserve) <= 300


def test_rungs_of_a_few_steps_are_left_out_unless_one_must_choose() -> None:
    short = TrialCost(12, 0.1, 3.0, 0.1, 1.0, 2.0)
    assert plan_for(1e6, {"lora": short}, settings=1).fractions == (1.0,)
    (first, last) = plan_for(1e6, {"lora": short}).fractions
    assert (first, last) == (0.5, 1.0)
    assert plan_for(1e6, {"lora": COST}).fractions == (1 / 9, 1 / 3, 1.0)


@pytest.mark.parametrize(
    ("steps", "fractions"),
    [
        (0, (1 / 9, 1 / 3, 1.0)), (900, (1 / 9, 1 / 3, 1.0)), (450, (1 / 9, 1 / 3, 1.0)),
        (440, (50 / 440, 1.0)), (200, (0.25, 1.0)), (100, (0.5, 1.0)), (99, (1.0,)),
    ],
)  # fmt: skip
def test_the_first_rung_is_a_ninth_or_what_says_something_and_the_next_three_times_as_long(
    steps: int, fractions: tuple[float, ...]
) -> None:
    assert rung_fractions(steps, 50) == pytest.approx(fractions)


def test_where_one_must_choose_it_is_half_as_long_at_most() -> None:
    assert rung_fractions(99, 50, must_choose=True) == (0.5, 1.0)
