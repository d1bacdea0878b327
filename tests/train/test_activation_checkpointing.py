"""Gradient checkpointing: the same losses and gradients for every kind of method, and no second run below the trained layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from dollartune.attachment import Adapter
from dollartune.attachment.attached import Assignment, Attached
from dollartune.methods.base import Method
from dollartune.methods.bitfit import BitFit
from dollartune.methods.dora import DoRA
from dollartune.methods.edits import Rows
from dollartune.methods.full import Full
from dollartune.methods.houlsby import Houlsby
from dollartune.methods.ia3 import IA3
from dollartune.methods.layer_freezing import LayerFreezing
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.parallel import Parallel
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.reft import ReFT
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import loss, perturb, refusal
from dollartune.testing.tiny import TinyBackbone
from dollartune.train.activation_checkpointing import recomputed_layers

METHODS: dict[str, list[Method[Any]]] = {
    "lora": [LoRA(rank=2, dropout=0.3, where="all_linear")],
    "dora": [DoRA(rank=2)],
    "ia3": [IA3()],
    "bitfit": [BitFit()],
    "houlsby": [Houlsby()],
    "parallel": [Parallel()],
    "loreft": [ReFT(rank=2)],
    "prompt": [PromptTuning(tokens=3)],
    "prefix": [Prefix(tokens=3, reparameterize=True, hidden=8)],
    "norm": [Norm()],
    "full": [Full()],
    "last_layer": [LayerFreezing()],
    "mixture": [LoRA(rank=2), Prefix(tokens=2), PromptTuning(tokens=2)],
}


def gradients(
    backbone: TinyBackbone, adapter: Adapter, active: bool, layers: Counter[str] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    attached = Attached(backbone.model, backbone.anatomy)
    attached.put("adapter", adapter)
    adapter.zero_grad()
    handles = []
    for site in backbone.anatomy.at("self_attn.q") if layers is not None else ():
        module = backbone.model.get_submodule(site.exit)
        handles.append(module.register_forward_hook(lambda *_, name=site.name: layers.update([name])))  # type: ignore[misc]
    try:
        with recomputed_layers(attached, active):
            with attached.routed(Assignment(adapter, slice(None), Rows(training=True, seed=5))):
                found = loss(backbone, attached, backbone.inputs())
            found.backward()  # the route has gone, as it has in training
    finally:
        attached.detach()
        for handle in handles:
            handle.remove()
    return found.detach(), {name: p.grad.clone() for name, p in adapter.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("family", ["opt", "llama", "bloom", "t5", "bart", "bert/classification", "vit"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_the_same(family: str, name: str) -> None:
    backbone = tiny_backbone(family)
    if reason := next((reason for method in METHODS[name] if (reason := refusal(method, backbone))), None):
        pytest.skip(reason)
    adapter = Adapter(METHODS[name], backbone.anatomy, backbone.model)
    perturb(adapter, 0.05, 0)
    plain, recomputed = gradients(backbone, adapter, False), gradients(backbone, adapter, True)
    assert torch.equal(plain[0], recomputed[0])
    assert plain[1].keys() == recomputed[1].keys()
    for parameter, gradient in plain[1].items():
        torch.testing.assert_close(recomputed[1][parameter], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", ["opt", "t5", "bert/classification"])
def test_nothing_runs_again_below_the_lowest_trained_layer(family: str) -> None:
    backbone = tiny_backbone(family)
    adapter = Adapter([LoRA(rank=2, where="self_attn.q", layers="last 1")], backbone.anatomy, backbone.model)
    perturb(adapter, 0.05, 0)
    runs: Counter[str] = Counter()
    gradients(backbone, adapter, True, runs)
    last = {f"{stack}.{count - 1}.self_attn.q" for stack, count in backbone.anatomy.layer_counts.items()}
    again = {name for name, count in runs.items() if count == 2}
    assert last <= again
    trained_encoder = backbone.anatomy.kind == "encoder_decoder"  # every layer of a decoder reads what it gives
    assert again == (last | {n for n in runs if n.startswith("decoder.")} if trained_encoder else last)


def test_layers_save_their_input_alone() -> None:
    backbone = tiny_backbone("llama")
    adapter = Adapter([LoRA(rank=2, where="all_linear")], backbone.anatomy, backbone.model)
    sizes = []
    for active in (False, True):
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gradients(backbone, adapter, active)
        sizes.append(sum(kept.values()))
    assert sizes[1] < sizes[0] / 2


def test_the_model_is_as_before() -> None:
    backbone = tiny_backbone("opt")
    attached = Attached(backbone.model, backbone.anatomy)
    with recomputed_layers(attached):
        pass
    assert not [name for name, module in backbone.model.named_modules() if "forward" in vars(module)]
    attached.detach()
