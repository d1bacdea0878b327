"""Buffers that grow hold what concatenation would; what is kept of an adapter is what its passes would compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.methods.base import Method
from dollartune.methods.lora import LoRA
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.serve.cache import ROOM, Places, past_of, rows_past
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
