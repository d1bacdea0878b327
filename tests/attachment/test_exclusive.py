"""Full tuning replaces the backbone's parameters for the length of a call, generation included, and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from dollartune.attachment import Attached
from dollartune.methods import Full
from dollartune.testing import tiny_backbone


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "t5", "bart"])
def test_full_tuning_generates_with_its_own_values(family: str) -> None:
    backbone = tiny_backbone(family)
    inputs = {k: v for k, v in backbone.inputs().items() if k in ("input_ids", "attention_mask")}
    names = [name for name, _ in backbone.model.named_parameters()]
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        adapter = attached.add("full", [Full()])
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        with attached.routed("full"):
            tuned = attached.generate(**inputs, max_new_tokens=4, do_sample=False)
        with attached.routed(None):
            plain = attached.generate(**inputs, max_new_tokens=4, do_sample=False)
    finally:
        attached.detach()
    assert not torch.equal(tuned, plain)
    assert [name for name, _ in backbone.model.named_parameters()] == names  # in the same order, too
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())
