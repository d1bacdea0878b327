"""A run has diverged when its numbers are no numbers, its weights have left reason, or nothing reaches them any more."""

import math
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.diverged import (
    LARGEST_WEIGHT,
    ZERO_GRADIENTS,
    check_weights,
    weights_may_have_left,
    zero_gradients,
)
from dollartune.train.encoding import Encoder
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

SETTINGS = TrainingSettings(epochs=8, batch_size=4, patience=None, precision="fp32")


@pytest.fixture
def trial(backbone: Backbone, moods: Task) -> Any:
    """A LoRA that is about to take its first step."""
    attached = Attached(backbone.model, backbone.anatomy)
    train = Encoder(backbone).encode(moods, moods.splits(10, 0, 6).train)
    yield TrialState("a", attached.add("a", [build_method("lora(rank=2)")], 0), train, SETTINGS, 0)
    attached.detach()


def give_gradients(trial: TrialState, value: float) -> None:
    for parameter in trial.adapter.trainable().values():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number(trial: TrialState, loss: float) -> None:
    give_gradients(trial, 0.1)
    with pytest.raises(FloatingPointError, match=r"training loss is .* at step 1"):
        trial.step(loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number(trial: TrialState, value: float) -> None:
    give_gradients(trial, value)
    with pytest.raises(FloatingPointError, match=r"the gradient is .* at step 1"):
        trial.step(1.0)


def test_a_gradient_of_0_again_and_again(trial: TrialState) -> None:
    for _ in range(ZERO_GRADIENTS - 1):
        give_gradients(trial, 0.0)
        trial.step(9.01)
    give_gradients(trial, 0.0)
    with pytest.raises(FloatingPointError, match=r"exactly 0 for 10 steps at step 10, at a loss of 9.01"):
        trial.step(9.01)


def test_one_gradient_in_between_begins_the_count_anew(trial: TrialState) -> None:
    for number in range(2 * ZERO_GRADIENTS):
        give_gradients(trial, 1e-6 if number == ZERO_GRADIENTS - 1 else 0.0)
        trial.step(9.01)
        if number == 2 * ZERO_GRADIENTS - 2:
            break
    assert trial.progress.zero_gradients == ZERO_GRADIENTS - 1


def test_a_loss_of_exactly_0_is_no_alarm(trial: TrialState) -> None:
    """Everything is learned by heart: the gradient is rightly 0."""
    for _ in range(2 * ZERO_GRADIENTS):
        give_gradients(trial, 0.0)
        trial.step(0.0)
    assert trial.progress.step == 2 * ZERO_GRADIENTS


def test_a_method_that_gives_no_gradients_for_a_while_is_no_alarm(trial: TrialState) -> None:
    for _ in range(2 * ZERO_GRADIENTS):
        trial.step(9.01)
    assert trial.progress.zero_gradients == 0


@pytest.mark.parametrize("rate", [1e7, 1e12, 1e30])
def test_weights_that_left_reason_end_the_run_at_once(trial: TrialState, rate: float) -> None:
    trial.peak_rates = [rate for _ in trial.peak_rates]
    give_gradients(trial, 0.1)
    with pytest.raises(FloatingPointError, match=r"a trained weight has grown to .* at step 1"):
        trial.step(9.01)


def test_a_weight_that_is_no_number_has_left_too() -> None:
    check_weights([torch.ones(3), torch.zeros(0)], 1)
    for value in (math.nan, math.inf, -2 * LARGEST_WEIGHT):
        with pytest.raises(FloatingPointError, match=r"at step 7"):
            check_weights([torch.ones(3), torch.tensor([0.0, value])], 7)


def test_weights_are_looked_at_before_adamw_can_have_brought_them_there() -> None:
    """AdamW moves a number furthest where gradients grow by beta2 / beta1 after a long rest: by 7.3 rates in a step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0)
    furthest = 0.0
    for step in range(6060):
        weight.grad = torch.tensor([0.0 if step < 6000 else (0.999 / 0.9) ** (step - 6000)])
        before = weight.item()
        optimizer.step()
        furthest = max(furthest, abs(weight.item() - before))
    assert 7.0 < furthest < 8.0
    assert not weights_may_have_left([1e-3], 1_000_000)
    assert weights_may_have_left([1.0], int(LARGEST_WEIGHT / 8))
    assert not weights_may_have_left([], 10)


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "prefix", "adalora", "diff_pruning", "pfeiffer", "dora"])
def test_sound_training_raises_no_alarm(backbone: Backbone, moods: Task, method: str) -> None:
    attached = Attached(backbone.model, backbone.anatomy)
    train = Encoder(backbone).encode(moods, moods.splits(10, 0, 6).train)
    trial = TrialState("a", attached.add("a", [build_method(method)], 0), train, SETTINGS, 0)
    try:
        CohortTrainer(backbone, attached, [trial], train).run()
    finally:
        attached.detach()
    assert trial.progress.step == trial.total_steps == 24
    assert trial.progress.zero_gradients == 0


def test_the_count_goes_on_after_an_interruption() -> None:
    assert zero_gradients(0.0, 1.0, before=3, step=5) == 4
    assert zero_gradients(1e-30, 1.0, before=3, step=5) == 0
