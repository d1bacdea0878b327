"""Scales and shifts of the adapters of a batch, kept for all steps, are those that each edit applies by itself."""

from __future__ import annotations

import torch

from dollartune.attachment import Adapter, Assignment
from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.hooks import apply_edit
from dollartune.methods.bitfit import BitFit
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import perturb

MODULE = "model.decoder.layers.0.self_attn.v_proj"


def test_rows_of_scales_and_shifts_alone_are_touched() -> None:
    backbone = tiny_backbone("opt")
    methods = BitFit(), IA3(), LoRA(rank=2, where="self_attn.v")
    bias, scale, lora = adapters = [Adapter([method], backbone.anatomy, backbone.model, 0) for method in methods]
    for adapter in adapters:
        perturb(adapter, 0.1, 0)
    route = [
        Assignment(lora, slice(1, 2)),
        Assignment(scale, slice(2, 4)),
        Assignment(bias, slice(5, 6)),
    ]
    y = torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(0))
    plan = DecodeCache().plan(route, "outputs", MODULE, y)
    assert [assignment.adapter for assignment in plan.rest] == [lora]
    edited = y.clone()
    for affine in plan.affine:
        affine.apply(edited)
    for rows in (slice(0, 2), slice(4, 5), slice(6, 8)):
        assert torch.equal(edited[rows], y[rows])
    for assignment in route[1:]:
        ((_, edit),) = assignment.adapter.outputs[MODULE]  # type: ignore[union-attr]
        expected = apply_edit(edit, y[assignment.rows], y[assignment.rows], assignment.context)
        torch.testing.assert_close(edited[assignment.rows], expected)
        assert not torch.equal(expected, y[assignment.rows])
