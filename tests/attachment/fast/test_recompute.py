"""The recomputed backward pass: the same gradients as the plain one, and no saved activation but the input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dollartune.attachment.fast.recompute import _has_formula, add_delta
from dollartune.backbones.anatomy import Site
from dollartune.methods.diff_pruning import SparseDifference
from dollartune.methods.edits import Delta, Rows
from dollartune.methods.intrinsic import Coordinates, SubspaceDelta
from dollartune.methods.lora import LowRank, PrincipalLowRank
from dollartune.methods.rank_allocation import SingularTriplets
from dollartune.methods.vera import Projections, RandomProjection
from dollartune.testing.practice import perturb

SITE = Site("decoder", 0, "self_attn.q", "linear", "q", "q", 12, 20)
EDITS: dict[str, Any] = {
    "lora": lambda: LowRank(12, 20, 3, 2.0, 0.3),
    "pissa": lambda: PrincipalLowRank(torch.randn(20, 12), 3, 2.0, 0.3),
    "adalora": lambda: SingularTriplets(12, 20, 3, 6.0, 0.3),
    "vera": lambda: RandomProjection(SITE, Projections(8, 12, 20, 0), 0.1, 0.3),
    "diff_pruning": lambda: SparseDifference(SITE, "row", 0.0),
    "intrinsic": lambda: SubspaceDelta(SITE, Coordinates(30, ["decoder/0"]), "decoder/0", 0),
}


def built(name: str) -> Delta:
    torch.manual_seed(0)
    edit: Delta = EDITS[name]()
    edit.key = 17
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return edit


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen_input", [False, True])
def test_gradients_equal_the_plain_ones(name: str, training: bool, frozen_input: bool) -> None:
    edit, rows = built(name), Rows(training=training, seed=5)
    results = []
    for recomputed in (True, False):
        x = torch.linspace(-1, 1, 2 * 4 * 12).view(2, 4, 12).requires_grad_(not frozen_input)
        y = torch.linspace(1, 2, 2 * 4 * 20).view(2, 4, 20).requires_grad_()
        edit.zero_grad()
        out = add_delta(edit, x, y, rows) if recomputed else y + edit.delta(x, rows)
        out.square().mean().backward()
        results.append(
            (out.detach(), y.grad, x.grad, [p.grad.clone() for p in edit.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)
    assert len(results[0][3]) == len(list(edit.parameters()))


@pytest.mark.parametrize("name", EDITS)
def test_nothing_is_saved_but_the_input_and_the_parameters(name: str) -> None:
    edit = built(name)
    own = {p.data_ptr() for p in edit.parameters()}
    x = torch.randn(2, 50, 12, requires_grad=True)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        add_delta(edit, x, torch.randn(2, 50, 20), Rows(training=True, seed=1))
    assert saved
    assert all(tensor.data_ptr() in own | {x.data_ptr()} for tensor in saved)


def test_dropout_masks_differ_by_site_and_step_and_replay() -> None:
    edit, other = built("lora"), built("lora")
    other.key = 18
    x = torch.randn(1, 30, 12)
    first = edit.delta(x, Rows(training=True, seed=5))
    assert torch.equal(first, edit.delta(x, Rows(training=True, seed=5)))
    assert not torch.equal(first, edit.delta(x, Rows(training=True, seed=6)))
    assert not torch.equal(first, other.delta(x, Rows(training=True, seed=5)))
    assert torch.equal(edit.delta(x, Rows(seed=5)), edit.delta(x, Rows(seed=6)))


def test_perturb_is_what_moves_every_tensor() -> None:
    from dollartune.attachment import Adapter
    from dollartune.methods.lora import LoRA
    from dollartune.testing import tiny_backbone

    backbone = tiny_backbone("opt")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    before = {name: p.detach().clone() for name, p in adapter.trainable().items()}
    perturb(adapter, 0.1, 0)
    assert all(not torch.equal(before[name], p) for name, p in adapter.trainable().items())


def test_a_formula_is_used_for_the_delta_that_it_belongs_to_alone() -> None:
    class Doubled(LowRank):
        def delta(self, x: Tensor, rows: Rows) -> Tensor:
            return 2 * super().delta(x, rows)

    assert _has_formula(LowRank)
    assert _has_formula(PrincipalLowRank)
    assert not _has_formula(Doubled)
    assert not _has_formula(RandomProjection)
