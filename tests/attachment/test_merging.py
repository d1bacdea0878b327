"""Merging: stacked methods in one merge, places for created biases, what 4 bits and bf16 lose, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dollartune.attachment import Adapter, Attached
from dollartune.attachment.merging import Merged, merge
from dollartune.errors import UserError
from dollartune.methods.bitfit import BitFit
from dollartune.methods.dora import DoRA
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.prompt import PromptTuning
from dollartune.testing import TinyBackbone, tiny_backbone
from dollartune.testing.practice import perturb


def run(backbone: TinyBackbone, model: Any, adapter: Adapter | None = None) -> Tensor:
    """Logits of a model, with an adapter if one is given."""
    attached = Attached(model, backbone.anatomy)
    if adapter is not None:
        attached.put("adapter", adapter)
    with torch.no_grad(), attached.routed("adapter" if adapter is not None else None):
        logits = backbone.logits(attached, backbone.inputs())
    attached.detach()
    return logits


def merged_copy(backbone: TinyBackbone, *methods: Any, **options: Any) -> tuple[Any, Adapter, Merged]:
    adapter = Adapter(methods, backbone.anatomy, backbone.model)
    perturb(adapter, 0.05, 0)
    model = copy.deepcopy(backbone.model)
    return model, adapter, merge(model, backbone.anatomy, adapter, **options)


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "bloom", "t5", "bert", "vit", "albert", "gpt_neo"])
@pytest.mark.parametrize(
    "methods",
    [
        (LoRA(rank=2, where="all_linear"), BitFit(), Norm()),
        (IA3(), LoRA(rank=2, where="all_linear")),
        (LoRA(rank=2, where="all_linear"), IA3(two_vectors=True)),
        (BitFit(), DoRA(rank=2, where="all_linear"), IA3()),
        (Norm(), BitFit(where="all_linear norm")),
    ],
    ids=lambda methods: "+".join(method.name for method in methods),
)
def test_combinations_merge_exactly(family: str, methods: tuple[Any, ...]) -> None:
    backbone = tiny_backbone(family)
    model, adapter, merged = merged_copy(backbone, *methods)
    expected = run(backbone, backbone.model, adapter)
    torch.testing.assert_close(run(backbone, model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, run(backbone, backbone.model), atol=1e-2)
    assert all(lost < 1e-5 for lost in merged.lost.values())


def test_refusal_names_the_method_and_what_could_be_merged() -> None:
    with pytest.raises(UserError, match=r"prompt cannot be merged.*lora alone could be"):
        merged_copy(tiny_backbone("opt"), LoRA(rank=2), PromptTuning(tokens=2))


def test_created_biases_find_a_place_in_llamas_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    backbone = tiny_backbone("llama")
    model, adapter, merged = merged_copy(backbone, BitFit(where="self_attn.q mlp.down"))
    assert len(merged.created_biases) == 6
    assert not merged.unportable
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(backbone, again), run(backbone, backbone.model, adapter), rtol=1e-5, atol=1e-5)


def test_created_biases_without_a_place_are_named() -> None:
    _, _, merged = merged_copy(tiny_backbone("t5"), BitFit(where="self_attn.q"))
    assert merged.unportable == merged.created_biases
    assert merged.unportable[0] == "encoder.block.0.layer.0.SelfAttention.q"


def test_packed_weights_cannot_be_unfrozen() -> None:
    from dollartune.methods.full import Full

    backbone = tiny_backbone("opt")
    with pytest.raises(UserError, match="packed in 4 bits"):
        Adapter([Full()], backbone.anatomy, quantized(backbone))


def test_tied_embeddings_stay_tied() -> None:
    from dollartune.methods.layer_freezing import LayerFreezing

    backbone = tiny_backbone("opt")
    model, adapter, _ = merged_copy(backbone, LayerFreezing(train="last 1", embeddings=True))
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    torch.testing.assert_close(run(backbone, model), run(backbone, backbone.model, adapter), rtol=1e-5, atol=1e-5)


def test_weights_that_layers_share_have_no_place_for_one_layers_update() -> None:
    """Zamba 2's layers have one block's weights, and each of them an update of its own."""
    backbone = tiny_backbone("llama")
    model = copy.deepcopy(backbone.model)
    first, second = (layer.self_attn.q_proj for layer in model.model.layers[:2])
    second.weight = first.weight
    adapter = Adapter([LoRA(where="self_attn.q")], backbone.anatomy, model)
    before = first.weight.clone()
    with pytest.raises(UserError, match="q_proj shares its weights with another layer"):
        merge(model, backbone.anatomy, adapter)
    assert torch.equal(first.weight, before)
    merge(model, backbone.anatomy, Adapter([LoRA(where="self_attn.v")], backbone.anatomy, model))


def test_bf16_weights_lose_a_share_of_the_update_that_is_measured() -> None:
    backbone = tiny_backbone("opt")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.02, 0)
    model = copy.deepcopy(backbone.model).bfloat16()
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    merged = merge(model, backbone.anatomy, adapter)
    for site, edit in adapter.items():
        old, new = before[f"{site.exit}.weight"], model.get_submodule(site.exit).weight.float()
        update = edit.scale * (edit.B @ edit.A)  # type: ignore[operator, union-attr]
        expected = float((new - old - update).norm() / update.norm())
        assert merged.lost[site.exit] == pytest.approx(expected, rel=1e-3)
        assert expected > 1e-3


def quantized(backbone: TinyBackbone) -> Any:
    """A copy whose attention and feed-forward linears are in 4 bits."""
    bnb = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(backbone.model)
    for site in backbone.anatomy.sites:
        if site.kind == "linear":
            parent, _, child = site.exit.rpartition(".")
            old = model.get_submodule(site.exit)
            new = bnb.nn.Linear4bit(
                site.in_features,
                site.out_features,
                bias=old.bias is not None,
                compute_dtype=torch.float32,
                quant_type="nf4",
            )
            new.load_state_dict(old.state_dict())
            setattr(model.get_submodule(parent), child, new.to("cpu"))
    with torch.no_grad():
        model(**backbone.inputs())  # packs
    return model


@pytest.mark.parametrize(
    "method", [LoRA(rank=2), DoRA(rank=2), LoRA(rank=2, init="pissa"), IA3(), IA3(two_vectors=True)], ids=repr
)
def test_quantized_weights(method: Any) -> None:
    """Methods run on 4-bit weights as they are; merging leaves plain linears, or 4 bits with the loss measured."""
    backbone = tiny_backbone("opt")
    model = quantized(backbone)
    assert type(model.get_submodule(backbone.anatomy.at("self_attn.q")[0].exit)).__name__ == "Linear4bit"
    adapter = Adapter([method], backbone.anatomy, model)
    perturb(adapter, 0.05, 0)
    expected = run(backbone, model, adapter)
    again = quantized(backbone)
    lossy = merge(again, backbone.anatomy, adapter, requantize=True)
    exact = merge(model, backbone.anatomy, adapter)
    torch.testing.assert_close(run(backbone, model), expected, rtol=1e-3, atol=1e-3)
    site = backbone.anatomy.at("self_attn.v")[0]
    assert type(model.get_submodule(site.exit)) is nn.Linear
    assert type(again.get_submodule(site.exit)).__name__ == "Linear4bit"
    assert max(exact.lost.values()) < 1e-4 < 1e-2 < max(lossy.lost.values())
    assert not torch.allclose(run(backbone, again), expected, atol=1e-3), "4 bits should lose something"
