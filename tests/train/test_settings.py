"""Training settings: reference 001's epoch rule, the schedule, and strictness."""

import itertools
import math

import pytest
from pydantic import ValidationError

from dollartune.train.length import Replan
from dollartune.train.lr_schedule import learning_rate_factor
from dollartune.train.settings import TrainingSettings


def factor(step: int, total: int, settings: TrainingSettings) -> float:
    assert settings.schedule != "auto"
    return learning_rate_factor(step, [Replan(0, total)], settings.schedule, settings.warmup)


@pytest.mark.parametrize(("rows", "epochs"), [(1, 10), (100, 10), (101, 5), (1000, 5), (1001, 1), (10_000, 1)])
def test_epochs_that_are_named(rows: int, epochs: int) -> None:
    batches = math.ceil(rows / 16)
    assert TrainingSettings(epochs="reference_001").steps_for(rows) == epochs * batches
    assert TrainingSettings(epochs=3).steps_for(rows) == 3 * batches


def test_steps_grow_with_rows_without_a_cliff() -> None:
    steps = [TrainingSettings().steps_for(rows) for rows in range(1, 30_000)]
    assert steps == sorted(steps)
    assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(steps))  # one row more is hardly more work
    assert [steps[rows - 1] for rows in (100, 300, 1000, 1001, 1400, 3000)] == [72, 138, 284, 285, 348, 549]
    assert TrainingSettings().steps_for(100_000) == 6250, "each row is read once at least"


def test_larger_batches_see_as_many_rows() -> None:
    small, large = (TrainingSettings(batch_size=size).steps_for(1000) for size in (8, 32))
    assert small == pytest.approx(4 * large, abs=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"epochs": "reference_002"},
        {"warmup": 1.0},
        {"clip": 0.0},
        {"batch_size": "8"},
        {"bacth_size": 8},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings(**settings)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_the_rate_rises_then_falls(name: str) -> None:
    settings = TrainingSettings(schedule=name, warmup=0.2)
    rates = [factor(step, 20, settings) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    if name == "constant":
        assert set(rates[4:]) == {1.0}
    else:
        assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
        assert 0 < rates[-1] < 0.1
    assert factor(0, 20, TrainingSettings(schedule=name, warmup=0.0)) == 1.0


def test_linear_and_cosine_at_half_way() -> None:
    assert factor(10, 20, TrainingSettings(schedule="linear", warmup=0.0)) == pytest.approx(0.5)
    assert factor(5, 20, TrainingSettings(schedule="cosine", warmup=0.0)) == pytest.approx(0.853553, abs=1e-6)
