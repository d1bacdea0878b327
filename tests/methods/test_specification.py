"""Methods that train what is there already: held against training those parameters themselves, and their promises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dollartune.attachment import Adapter, Attached
from dollartune.attachment.merging import merge
from dollartune.errors import UserError
from dollartune.methods.bitfit import BitFit
from dollartune.methods.diff_pruning import DiffPruning, SparseDifference
from dollartune.methods.edits import Rows
from dollartune.methods.full import Full
from dollartune.methods.head import Head
from dollartune.methods.layer_freezing import LayerFreezing
from dollartune.methods.norm import Norm
from dollartune.testing import TinyBackbone, tiny_backbone
from dollartune.testing.practice import attached_to, finish, loss, train


def trained_plainly(backbone: TinyBackbone, names: set[str], steps: int = 4) -> nn.Module:
    """A copy of the model whose named parameters were trained by hand."""
    model: nn.Module = copy.deepcopy(backbone.model)
    chosen = [p for name, p in model.named_parameters() if name in names]
    assert len(chosen) == len(names)
    optimizer = torch.optim.Adam(chosen, lr=0.01)
    attached = Attached(model, backbone.anatomy)
    for parameter in chosen:
        parameter.requires_grad_(True)
    for _ in range(steps):
        loss(backbone, attached, backbone.inputs()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def bias_names(backbone: TinyBackbone) -> set[str]:
    return {f"{site.exit}.bias" for site in backbone.anatomy.sites if site.kind in ("linear", "norm") and site.bias}


def below(backbone: TinyBackbone, kind: str, layers: tuple[int, ...] | None = None) -> set[str]:
    """Parameters of all modules at sites of a kind."""
    exits = [
        site.exit for site in backbone.anatomy.sites if site.kind == kind and (layers is None or site.layer in layers)
    ]
    return {
        name for name, _ in backbone.model.named_parameters() if any(name.startswith(f"{exit_}.") for exit_ in exits)
    }


@pytest.mark.parametrize("family", ["opt", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("which", ["full", "norm", "bitfit", "layer_freezing"])
def test_equals_training_the_parameters_themselves(which: str, family: str) -> None:
    backbone = tiny_backbone(family)
    last = tuple(count - 1 for count in backbone.anatomy.layer_counts.values())
    methods: dict[str, tuple[Any, set[str]]] = {
        "full": (Full(weight_decay=0.0), {name for name, _ in backbone.model.named_parameters()}),
        "norm": (Norm(), below(backbone, "norm")),
        "bitfit": (BitFit(where="all_linear norm", create=False), bias_names(backbone)),
        "layer_freezing": (LayerFreezing(train="last 1", weight_decay=0.0), below(backbone, "layer", last)),
    }
    method, names = methods[which]
    if not names:
        with pytest.raises(UserError, match="has a bias"):
            method.sites(backbone.anatomy)
        return
    expected = trained_plainly(backbone, names)
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    with attached_to(backbone, adapter) as attached:
        train(backbone, attached, adapter, 4, 0.01)
    found = copy.deepcopy(backbone.model)
    merge(found, backbone.anatomy, adapter)
    moved = 0.0
    for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        if not name.endswith(("k_proj.bias", "key.bias")):  # softmax ignores them, so their gradient is rounding
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        moved = max(moved, float((ours - backbone.model.get_parameter(name)).abs().max()))
    assert moved > 0.01


def test_frozen_layers_below_the_trained_ones_have_no_backward_pass() -> None:
    backbone = tiny_backbone("opt")
    adapter = Adapter([LayerFreezing(train="last 1")], backbone.anatomy, backbone.model)
    needs_gradient = []
    layers = [backbone.model.get_submodule(site.exit) for site in backbone.anatomy.at("layer")]
    handles = [
        layer.register_forward_hook(
            lambda _module, _args, output: needs_gradient.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
        for layer in layers
    ]
    with attached_to(backbone, adapter) as attached:
        loss(backbone, attached, backbone.inputs())
    for handle in handles:
        handle.remove()
    assert needs_gradient == [False, False, True]


def test_embeddings_of_vision_are_counted_once() -> None:
    backbone = tiny_backbone("vit")
    method = LayerFreezing(train="last 1", embeddings=True)
    assert [site.role for site in method.sites(backbone.anatomy)] == ["embed.tokens", "layer"]
    with pytest.raises(UserError, match="selects nothing"):
        LayerFreezing(train="none").sites(backbone.anatomy)


def test_head_is_drawn_by_seed_or_continued() -> None:
    backbone = tiny_backbone("bert")
    weight = backbone.model.classifier.weight
    heads = [
        Adapter([Head(fresh=fresh)], backbone.anatomy, backbone.model, seed).get_parameter(
            "parts.0.edits.head.copies.weight"
        )
        for fresh, seed in ((True, 0), (True, 1), (True, 0), (False, 0))
    ]
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[3], weight)


def test_head_of_a_language_model_is_refused() -> None:
    with pytest.raises(UserError, match="language-model head"):
        Head().sites(tiny_backbone("gpt2").anatomy)


# DiffPruning


def test_diff_pruning_keeps_the_promised_share_and_stores_no_more() -> None:
    backbone, method = tiny_backbone("opt"), DiffPruning(keep=0.05, lr=0.02, where="attention")
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    total = sum(site.in_features * site.out_features for site, _ in adapter.items())
    stages = []
    with attached_to(backbone, adapter) as attached:
        train(backbone, attached, adapter, 6, 0.02)
        stages.append({edit.stage for _, edit in adapter.items()})  # type: ignore[union-attr]
        expected = backbone.logits(attached, backbone.inputs()).detach()
    finish(adapter)
    stages.append({edit.stage for _, edit in adapter.items()})  # type: ignore[union-attr]
    assert stages == [{"fixed"}, {"compact"}]
    report = method.report(adapter.parts[0])
    assert report["weights_changed"] == round(0.05 * total)
    assert report["sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert sum(t.numel() for t in adapter.tensors().values()) == 2 * round(0.05 * total)
    with attached_to(backbone, adapter) as attached:
        torch.testing.assert_close(backbone.logits(attached, backbone.inputs()), expected, rtol=1e-5, atol=1e-5)


def test_penalty_closes_gates() -> None:
    backbone = tiny_backbone("opt")
    found = []
    for sparsity in (0.0, 20.0):
        method = DiffPruning(sparsity=sparsity, lr=0.02, gate_lr=1.0, final=0.0, keep=1.0, where="self_attn.q")
        adapter = Adapter([method], backbone.anatomy, backbone.model)
        with attached_to(backbone, adapter, Rows(training=True, seed=0)) as attached:
            part: Any = adapter.parts[0]
            optimizer = torch.optim.Adam(method.parameter_groups(part))
            for step in range(8):
                value = loss(backbone, attached, backbone.inputs()) + method.penalty(part, step / 8)
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(float(torch.stack([edit.expected_open().mean() for _, edit in adapter.items()]).mean()))  # type: ignore[operator]
    assert found[1] < 0.5 < found[0]


def test_gates_are_sampled_again_from_their_seed() -> None:
    site = tiny_backbone("opt").anatomy.at("self_attn.q")[0]
    edit = SparseDifference(site, "row", 0.0)
    nn.init.ones_(edit.w)
    first = edit.change(Rows(training=True, seed=1))
    assert torch.equal(first, edit.change(Rows(training=True, seed=1)))
    assert not torch.equal(first, edit.change(Rows(training=True, seed=2)))
    share_closed = float((first == 0).float().mean())
    open_ = edit.expected_open().mean()
    assert share_closed == pytest.approx(1 - float(open_), abs=0.12)


def test_a_checkpoint_from_before_the_choice_can_be_put_back() -> None:
    """The best validation may lie before the gates were fixed; `finish` then fixes them."""
    backbone, method = tiny_backbone("opt"), DiffPruning(keep=0.1, lr=0.02, where="self_attn.q")
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    with attached_to(backbone, adapter) as attached:
        train(backbone, attached, adapter, 2, 0.02)
        before = {name: t.clone() for name, t in Adapter([method], backbone.anatomy, backbone.model).tensors().items()}
        assert "mask" in "".join(adapter.tensors())
    adapter.load(before)
    assert not [name for name in adapter.tensors() if name.endswith("mask")]
    finish(adapter)
    assert method.report(adapter.parts[0])["weights_changed"] == 0
