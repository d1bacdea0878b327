"""Training settings: reference 001's epoch rule, the schedule, and strictness."""

import itertools

import pytest
from pydantic import ValidationError

from dollartune.train.lr_schedule import learning_rate_factor
from dollartune.train.settings import TrainingSettings


@pytest.mark.parametrize(("rows", "epochs"), [(1, 10), (100, 10), (101, 5), (1000, 5), (1001, 1), (10_000, 1)])
def test_epochs_follow_the_number_of_rows(rows: int, epochs: int) -> None:
    assert TrainingSettings().epochs_for(rows) == epochs
    assert TrainingSettings(epochs=3).epochs_for(rows) == 3


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"warmup": 1.0}, {"clip": 0.0}, {"batch_size": "8"}, {"bacth_size": 8}]
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings(**settings)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_the_rate_rises_then_falls(name: str) -> None:
    settings = TrainingSettings(schedule=name, warmup=0.2)
    rates = [learning_rate_factor(step, 20, settings) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    if name == "constant":
        assert set(rates[4:]) == {1.0}
    else:
        assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
        assert 0 < rates[-1] < 0.1
    assert learning_rate_factor(0, 20, TrainingSettings(schedule=name, warmup=0.0)) == 1.0


def test_linear_and_cosine_at_half_way() -> None:
    assert learning_rate_factor(10, 20, TrainingSettings(warmup=0.0)) == pytest.approx(0.5)
    assert learning_rate_factor(5, 20, TrainingSettings(schedule="cosine", warmup=0.0)) == pytest.approx(
        0.853553, abs=1e-6
    )
