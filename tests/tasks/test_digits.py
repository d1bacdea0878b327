"""The demo's image task."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from dollartune.errors import UserError
from dollartune.tasks.digits import (
    BLOCKS,
    PRETRAINED_CLASSES,
    TASKS,
    demo_digits,
    demo_digits_new,
    digit_arrays,
    digit_image,
)


def test_splits_are_disjoint_blocks_that_cover_the_data() -> None:
    from sklearn.datasets import load_digits

    blocks = [BLOCKS[split] for split in ("train", "validation", "test")]
    assert blocks[0][0] == 0
    assert blocks[-1][1] == len(load_digits().target)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(blocks))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tasks_keep_the_contract(name: str) -> None:
    task = TASKS[name]()
    assert task.name == name
    assert task.modality == "image"
    for split, examples in task.load().items():
        assert {example.label for example in examples} == set(task.labels)
        assert all(example.id.startswith(f"{split}/") for example in examples)
        assert all(example.fields["image"].size == (32, 32) for example in examples)
    with pytest.raises(UserError, match="image task"):
        task.prompt(task.load()["test"][0])


def test_new_digits_are_those_that_pretraining_left_out() -> None:
    labels = {int(label) for label in demo_digits_new().labels}
    assert labels | set(PRETRAINED_CLASSES) == set(range(10))
    assert not labels & set(PRETRAINED_CLASSES)
    counts = Counter(example.label for example in demo_digits_new().load()["test"])
    assert min(counts.values()) > 20


def test_image_keeps_the_ink_and_the_label() -> None:
    images, targets = digit_arrays("test")
    picture = np.asarray(digit_image(images[0]))
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert (picture[..., 0] == picture[..., 2]).all()
    assert picture.mean() == pytest.approx(images[0].mean() * 255 / 16, rel=0.05)
    assert demo_digits().load()["test"][0].label == str(targets[0])
