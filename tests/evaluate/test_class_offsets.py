"""Offsets per class make a measure of rare classes better, and leave alone what is right already."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dollartune.evaluate.class_offsets import answers, choose_offsets


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a model that knows how rare class 1 is, and labels: one row in ten is of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.1).long()
    signal = 1.2 * functional.one_hot(labels, 2) + torch.randn(count, 2, generator=generator)
    return (signal + torch.tensor([0.9, 0.1]).log()).log_softmax(-1), labels


def balanced_accuracy(labels: torch.Tensor, found: torch.Tensor) -> float:
    return sum(float((found[labels == c] == c).double().mean()) for c in (0, 1)) / 2


def test_rare_classes_gain_on_rows_that_chose_nothing() -> None:
    scored, labels = rows(600, 0)
    offsets = choose_offsets(scored, lambda found: balanced_accuracy(labels, found))
    fresh, fresh_labels = rows(4000, 1)
    before = balanced_accuracy(fresh_labels, answers(fresh, torch.zeros(2)))
    after = balanced_accuracy(fresh_labels, answers(fresh, offsets))
    assert before < 0.65
    assert after > before + 0.08


def test_what_cannot_get_better_stays() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    right = (4.0 * functional.one_hot(labels, 3)).log_softmax(-1)
    offsets = choose_offsets(right, lambda found: float((found == labels).double().mean()))
    assert offsets.tolist() == [0.0, 0.0, 0.0]
    assert answers(right, offsets).tolist() == labels.tolist()


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_recall_of_one_class(wanted: int) -> None:
    scored, labels = rows(300, 2)
    offsets = choose_offsets(scored, lambda found: float((found[labels == wanted] == wanted).double().mean()))
    assert (answers(scored, offsets)[labels == wanted] == wanted).all()
