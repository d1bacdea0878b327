"""What chooses the best state: log-loss at the best temperature; and what makes rare classes count."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dollartune.errors import UserError
from dollartune.train.calibrated_loss import balanced_weights, calibrated_losses
from dollartune.train.encoding import Encoded
from dollartune.train.loss import cross_entropy_sum
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import _class_weights


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    logits = torch.randn(200, 3, generator=generator) + 1.5 * functional.one_hot(labels, 3)
    return logits, labels


def test_how_sure_the_scores_are_does_not_count(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scored
    found = [float(calibrated_losses(scale * logits, labels).mean()) for scale in (0.3, 1.0, 10.0)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)
    plain = [float(functional.cross_entropy(scale * logits, labels)) for scale in (0.3, 0.7, 1.0, 1.5, 10.0)]
    assert found[0] <= min(plain) + 1e-6
    assert found[0] == pytest.approx(min(plain), abs=0.02)


def test_better_scores_have_the_smaller_loss_however_sure(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scored
    better = 12.0 * (logits + 0.5 * functional.one_hot(labels, 3))
    assert functional.cross_entropy(better, labels) > functional.cross_entropy(logits, labels)
    assert calibrated_losses(better, labels).mean() < calibrated_losses(logits, labels).mean()


def test_scores_that_say_nothing_or_are_no_numbers(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scored
    assert float(calibrated_losses(-logits, labels).mean()) == pytest.approx(
        1.0986, abs=0.02
    )  # ln 3: a constant is best
    assert torch.isnan(calibrated_losses(torch.full_like(logits, torch.nan), labels)).all()


def test_every_class_counts_the_same() -> None:
    labels = torch.tensor([0] * 90 + [2] * 10)
    weights = balanced_weights(labels)
    assert weights.tolist() == pytest.approx([100 / 180, 1.0, 5.0])
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    logits = torch.zeros(100, 3)
    whole = cross_entropy_sum(logits, labels, weights=weights)
    rare = cross_entropy_sum(logits[labels == 2], labels[labels == 2], weights=weights)
    assert float(rare / whole) == pytest.approx(0.5)


def test_class_weights_are_for_heads() -> None:
    rows = [Encoded(str(number), prompt=(1, 2), label=number % 4 // 3) for number in range(8)]
    weights = _class_weights(rows, TrainingSettings(class_weights="balanced"))
    assert weights is not None
    assert weights.tolist() == pytest.approx([8 / 12, 2.0])
    assert _class_weights(rows, TrainingSettings()) is None
    with pytest.raises(UserError, match="classification head"):
        _class_weights([Encoded("0", prompt=(1,), answer=(2,))], TrainingSettings(class_weights="balanced"))
