"""Batches: every example once per epoch, of similar length, and the same for the same seed."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.train.batching import Batch, Collator, by_length, epoch_order, side_by_side, typical_rows
from dollartune.train.encoding import Encoded

_draw = random.Random(1)
LENGTHS = [_draw.randint(5, 200) for _ in range(300)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 17), st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_every_example_once_per_epoch(rows: int, size: int, seed: int, epoch: int, group: bool) -> None:
    batches = epoch_order(LENGTHS[:rows], size, seed, epoch, group)
    assert sorted(index for batch in batches for index in batch) == list(range(rows))
    assert len(batches) == -(-rows // size)
    assert max(map(len, batches)) <= size


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(LENGTHS, 8, 0, 0)
    random.random()
    assert epoch_order(LENGTHS, 8, 0, 0) == first
    assert epoch_order(LENGTHS, 8, 1, 0) != first
    assert epoch_order(LENGTHS, 8, 0, 1) != first


def _padding(batches: list[list[int]]) -> int:
    return sum(max(LENGTHS[i] for i in batch) - LENGTHS[j] for batch in batches for j in batch)


def test_grouped_batches_have_far_less_padding_and_no_order_by_length() -> None:
    grouped, plain = epoch_order(LENGTHS, 8, 0, 0), epoch_order(LENGTHS, 8, 0, 0, group=False)
    assert _padding(grouped) < _padding(plain) / 3
    longest = [max(LENGTHS[i] for i in batch) for batch in grouped]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_evaluation_batches_are_sorted_by_length() -> None:
    flat = [index for batch in by_length(LENGTHS, 7) for index in batch]
    assert [LENGTHS[i] for i in flat] == sorted(LENGTHS)
    assert sorted(flat) == list(range(300))


def _batch(ids: list[list[int]], places: list[tuple[int, int]], targets: list[int]) -> Batch:
    keep = torch.tensor([row for row, _ in places]), torch.tensor([place for _, place in places])
    tensor = torch.tensor(ids)
    counts = tuple(sum(row == r for r, _ in places) for row in range(len(ids)))
    inputs = {"input_ids": tensor, "attention_mask": (tensor != 9).long()}
    return Batch(inputs, torch.tensor(targets), keep, torch.tensor([2] * len(ids)), counts)


def test_batches_side_by_side_keep_their_rows_places_and_targets() -> None:
    short = _batch([[1, 2, 3]], [(0, 2)], [7])
    long = _batch([[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]], [(0, 3), (0, 4), (1, 2)], [4, 5, 6])
    joined, rows, targets = side_by_side([short, long], pad=9)
    assert rows == [slice(0, 1), slice(1, 3)]
    assert targets == [slice(0, 1), slice(1, 4)]
    assert joined.inputs["input_ids"].tolist() == [[1, 2, 3, 9, 9], [1, 2, 3, 4, 5], [1, 2, 3, 9, 9]]
    assert joined.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 0, 0]]
    assert joined.keep is not None
    assert joined.keep[0].tolist() == [0, 1, 1, 2]
    assert joined.keep[1].tolist() == [2, 3, 4, 2]
    assert joined.targets[targets[1]].tolist() == [4, 5, 6]
    assert joined.counts == (1, 2, 1)
    assert joined.tokens == 15


def test_one_batch_alone_is_left_as_it_is() -> None:
    only = _batch([[1, 2, 3]], [(0, 2)], [7])
    assert side_by_side([only], 9)[0] is only


def test_an_evaluation_batch_ends_where_padding_costs_more_than_another() -> None:
    lengths = [10, 11, 12, 50, 52, 200]
    assert by_length(lengths, 6, spare=8) == [[0, 1, 2], [3, 4], [5]]
    assert by_length(lengths, 2, spare=8) == [[0, 1], [2], [3, 4], [5]]
    assert by_length(lengths, 6) == [[0, 1, 2, 3, 4, 5]]
    assert by_length(lengths, 6, most_tokens=104) == [[0, 1, 2], [3, 4], [5]], "a row may have more alone"


def test_typical_rows_are_about_as_long_as_the_mean() -> None:
    lengths = [1, 2, 3, 20, 21, 22, 100]  # 24.1 in the mean
    assert typical_rows(lengths, 3) == [5, 4, 3]
    assert sorted(typical_rows(lengths, 99)) == list(range(7))
    assert typical_rows([], 16) == []


def _images(name: str) -> Any:
    """A tiny model of images, with random weights in bf16."""
    import transformers as t

    configs = {
        "convnext": lambda: t.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, num_labels=2),
        "resnet": lambda: t.ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, num_labels=2),
        "swin": lambda: t.SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=2
        ),
    }
    return t.AutoModelForImageClassification.from_config(configs[name]()).bfloat16().eval()


@pytest.mark.parametrize("name", ["convnext", "resnet", "swin"])
def test_pixels_have_the_format_of_the_weights(name: str) -> None:
    model = _images(name)
    backbone = Backbone(name, model, None, anatomy_of(model), "classification")
    batch = Collator(backbone)([Encoded(str(i), label=i, pixels=torch.rand(3, 32, 32)) for i in range(2)])
    assert model(**batch.inputs).logits.shape == (2, 2)
