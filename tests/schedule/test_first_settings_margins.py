"""What is tried first, and how far from it the next settings lie."""

from __future__ import annotations

import pytest

from dollartune.methods.registry import build_method, method_class
from dollartune.methods.rules import Facts
from dollartune.methods.space import LogUniform
from dollartune.schedule.first_settings import Setting, settings_in_order, strongest, variant_of
from dollartune.schedule.search_space import SearchSpace
from dollartune.trials.trial import Variant


def test_backbones_of_100_million_parameters_and_more_begin_with_lora() -> None:
    assert strongest(["lora", "full"], 99_000_000) == ["full", "lora"]
    assert strongest(["lora", "full"], 100_000_000) == ["lora", "full"]


def test_the_first_rate_is_that_of_the_rule_and_further_ones_are_half_a_decade_from_it() -> None:
    space = SearchSpace("full", (Variant.of([build_method("full")], "full"),), {"lr": LogUniform(1e-6, 1e-2)})
    facts = Facts(384, 1000)
    rule = method_class("full").defaults_for(facts)["lr"]

    def rate(setting: Setting) -> float:
        return float(variant_of(setting, space, facts).build()[0].config.lr)

    assert rate(Setting("full")) == rule
    assert [rate(one) for one in settings_in_order({"full": space}, ["full"])] == pytest.approx(
        [rule, 3 * rule, rule / 3], rel=0.01
    )
