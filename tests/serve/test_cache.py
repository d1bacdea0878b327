"""Buffers that grow hold what concatenation would; what is kept of an adapter is what its passes would compute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.methods.base import Method
from dollartune.methods.lora import LoRA
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.serve.cache import ROOM, Places, past_of, rows_past
from dollartune.serve.pool import Pool
from dollartune.testing.practice import perturb
from dollartune.testing.tiny import tiny_backbone


def test_places_hold_what_concatenation_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 5, 4, generator=draw) for _ in range(2))
    places = Places(keys, values)
    for new in (1, 1, 3, 1, ROOM, 1):
        more = torch.randn(2, 3, new, 4, generator=draw)
        keys, values = torch.cat([keys, more], dim=2), torch.cat([values, -more], dim=2)
        found = places.update(more, -more)
        assert torch.equal(found[0], keys)
        assert torch.equal(found[1], values)
        assert places.get_seq_length() == keys.shape[2]


def test_rows_that_come_and_go_find_their_own_places() -> None:
    draw = torch.Generator().manual_seed(1)

    def drawn(rows: int, places: int) -> torch.Tensor:
        return torch.randn(rows, 2, places, 4, generator=draw)

    first = drawn(2, 5)
    places, kept = Places(first, -first), list(first)
    # rows that join, what stays of them in which order, and tokens that are written then
    for joining, length, order, written in (
        (2, 3, [0, 3, 2], 1),
        (1, 9, [1, 0, 3], 2),
        (0, 0, [2, 1], ROOM),
        (3, 4, [4, 1, 2, 3], 1),
        (1, 60, [4, 0], 1),
        (3, 5, [4, 0, 3, 2], 1),  # short ones and a long one change places
        (0, 0, [3, 2, 0, 1], 1),
    ):
        if joining:
            new = drawn(joining, length)
            places.add_rows(new, -new)
            kept += list(new)
        kept = [kept[row] for row in order]
        lengths = [row.shape[1] for row in kept]
        width = max(lengths)
        places.arrange(order, places.keys.shape[2] - width, lengths)
        more = drawn(len(order), written)
        keys, values = places.update(more, -more)
        kept = [torch.cat([row, added], dim=1) for row, added in zip(kept, more, strict=True)]
        assert keys.shape == (len(kept), 2, width + written, 4)
        for row, own in enumerate(kept):
            assert torch.equal(keys[row, :, -own.shape[1] :], own)
            assert torch.equal(values[row, :, -own.shape[1] :], -own)


def test_a_row_that_joins_shows_no_nan_of_who_was_there_before() -> None:
    places = Places(torch.ones(2, 1, 6, 2), torch.full((2, 1, 6, 2), torch.nan))
    places.clear([1])
    places.arrange([0], 0, [6])
    places.add_rows(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert places.values[1].isfinite().all()


def test_rows_keep_their_places_where_groups_allow_it() -> None:
    rows: Any = [None, None, *(SimpleNamespace(group=group) for group in (1, 1, 2, 2)), None]
    assert Pool.arranged(rows, [0, 1, 2, 3, 4, 5]) == [0, 1, 2, 3, 4, 5]
    assert Pool.arranged(rows, [1, 2, 3, 4, 5, 6]) == [6, 1, 2, 3, 4, 5], "who comes takes the place of who left"
    assert Pool.arranged(rows, [0, 2, 3, 4, 5]) == [0, 3, 2, 5, 4]
    assert Pool.arranged(rows, []) == []


METHODS: dict[str, list[Method[Any]]] = {
    "prompt": [PromptTuning(tokens=3)],
    "prefix": [Prefix(tokens=2)],
    "both": [LoRA(rank=2), PromptTuning(tokens=2)],
}


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_prompt_after_the_kept_past_equals_a_whole_pass(name: str) -> None:
    backbone = tiny_backbone("llama")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add(name, METHODS[name])
    perturb(adapter, 0.2, 0)
    ids = torch.tensor([[5, 6, 7, 8]])
    with attached.routed(name, batch_rows=1):
        whole = attached(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
    past = past_of(attached, adapter)
    assert past is not None
    begun = rows_past([past])
    assert begun is not None
    cache, visible = begun
    adapter.virtual.clear()
    adapter.prefixes.clear()
    mask = torch.cat([visible, torch.ones_like(ids)], dim=1)
    positions = visible.shape[1] + torch.arange(4)[None]
    with attached.routed(name, batch_rows=1):
        after = attached(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits[:, -1]
    attached.detach()
    assert torch.allclose(whole, after, atol=1e-5)


def test_gated_and_partial_prefixes_are_not_kept() -> None:
    backbone = tiny_backbone("llama")
    attached = Attached(backbone.model, backbone.anatomy)
    partial = attached.add("some layers", [Prefix(tokens=2, layers="first 50%")])
    plain = attached.add("nothing before", [LoRA(rank=2)])
    found = past_of(attached, partial), past_of(attached, plain)
    attached.detach()
    assert found == (None, None)
