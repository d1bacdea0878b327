"""What is begun with, by width and rows."""

from __future__ import annotations

import pytest

from dollartune.methods.registry import method_class, methods
from dollartune.methods.rules import Facts, batch_rows, full_tuning_rate, lora_rank


def test_rates_fall_with_the_width_and_loras_are_ten_times_as_high() -> None:
    assert [full_tuning_rate(width) for width in (384, 768, 4096)] == pytest.approx([1e-4, 5e-5, 9.38e-6])
    for width in (64, 384, 2048):
        facts = Facts(width, 1000)
        full, lora = method_class("full").defaults_for(facts), method_class("lora").defaults_for(facts)
        assert lora["lr"] == pytest.approx(10 * full["lr"], rel=1e-2)
    assert full_tuning_rate(1) == 1e-3


def test_ranks_and_batches_grow_with_rows() -> None:
    scales = (10, 100, 300, 1000, 1001, 10_000, 100_000, 10**9)
    assert [lora_rank(rows, 384) for rows in scales] == [4, 4, 8, 8, 8, 16, 64, 64]
    assert [lora_rank(10**9, width) for width in (2, 32, 48, 64)] == [2, 32, 32, 64]
    assert [batch_rows(rows) for rows in scales] == [8, 8, 8, 16, 16, 32, 32, 32]


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_takes_what_its_rule_says(name: str) -> None:
    cls = method_class(name)
    settings = cls.defaults_for(Facts(384, 1400))
    built = cls(**settings)
    assert all(getattr(built.config, key) == value for key, value in settings.items())
