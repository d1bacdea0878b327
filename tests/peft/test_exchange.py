"""Exchange with the peft library: written here and read there, written there and read here, logits equal to 1e-5."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment import Adapter
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter
from dollartune.export.peft_format import read_peft, write_peft
from dollartune.export.scoring import adapter_logits, peft_logits, sample_inputs
from dollartune.methods.adalora import AdaLoRA
from dollartune.methods.base import Method
from dollartune.methods.dora import DoRA
from dollartune.methods.head import Head
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.p_tuning import PTuning
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.vera import VeRA
from dollartune.testing import tiny_backbone
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb, train

peft = pytest.importorskip("peft")

FAMILIES = ("opt", "gpt2", "llama", "t5", "bart", "bert/classification", "vit")
EVERYWHERE: dict[str, Method[Any]] = {
    "lora": LoRA(rank=3),
    "lora_patterns": LoRA(
        rank=2,
        where="self_attn.q mlp.up",
        layers="last 1",
        rank_pattern={"mlp.up": 4},
        alpha_pattern={"self_attn.q": 3.0},
    ),
    "rslora": LoRA(rank=4, rank_stabilized=True, where="self_attn.o mlp.down"),
    "pissa": LoRA(rank=2, init="pissa"),
    "dora": DoRA(rank=2),
    "vera": VeRA(rank=8, where="all_linear"),
    "adalora": AdaLoRA(rank=4, target_rank=2, where="self_attn.q mlp.down"),
    "ia3": IA3(),
    "norm": Norm(),
}
VIRTUAL: dict[str, Method[Any]] = {
    "prompt": PromptTuning(tokens=4, placement="before"),
    "p_tuning": PTuning(tokens=4, hidden=8, placement="before"),
    "prefix": Prefix(tokens=3),
    "prefix_network": Prefix(tokens=3, reparameterize=True, hidden=8),
}


def backbone_of(name: str) -> Backbone:
    tiny = tiny_backbone(name)
    return Backbone(name, tiny.model, None, tiny.anatomy, tiny.objective)


def adapter_of(backbone: Backbone, *methods: Method[Any]) -> Adapter:
    chosen = [*methods, Head()] if backbone.objective == "classification" else list(methods)
    adapter = Adapter(chosen, backbone.anatomy, backbone.model, seed=1)
    perturb(adapter, 0.05, seed=2)
    for method, part in zip(adapter.methods, adapter.parts, strict=True):
        method.finish(part)
    return adapter


@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_written_adapters_give_the_same_in_peft(family: str, method: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    adapter = adapter_of(backbone, EVERYWHERE[method])
    bare = adapter_logits(backbone, None, sample_inputs(backbone))
    assert not torch.allclose(
        adapter_logits(backbone, adapter, sample_inputs(backbone)), bare, atol=1e-4
    )  # it does something
    written = write_peft(tmp_path / "out", backbone, adapter)
    assert written.peft_difference is not None


@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_virtual_tokens_give_the_same_in_peft(family: str, method: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    adapter = adapter_of(backbone, VIRTUAL[method])
    if method.startswith("prefix") and backbone.kind == "encoder_decoder":
        with pytest.raises(UserError, match="prefix of an encoder-decoder positions"):
            write_peft(tmp_path / "out", backbone, adapter)
        return
    assert write_peft(tmp_path / "out", backbone, adapter).peft_difference is not None


def test_a_prefix_like_pefts_gives_the_same_on_t5(tmp_path: Path) -> None:
    """Its distances, its places in the decoder alone, and its sharing between layers."""
    backbone = backbone_of("t5")
    adapter = adapter_of(backbone, Prefix(tokens=3, like_peft=True))
    bare, own = (adapter_logits(backbone, a, sample_inputs(backbone)) for a in (None, adapter))
    assert not torch.allclose(own, bare, atol=1e-3)
    assert write_peft(tmp_path / "out", backbone, adapter).peft_difference is not None
    with pytest.raises(UserError, match="learned ones"):
        Adapter([Prefix(like_peft=True)], backbone_of("bart").anatomy, backbone_of("bart").model)


TARGETS = {
    "opt": ["q_proj", "fc2"], "gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "down_proj"], "t5": ["q", "wo"],
    "bart": ["q_proj", "fc2"], "bert/classification": ["query", "output.dense"], "vit": ["q_proj", "fc2"],
}  # fmt: skip
TASK = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "encoder": "SEQ_CLS"}


def configs(backbone: Backbone) -> dict[str, Any]:
    targets = TARGETS[backbone.name]
    common = {"task_type": TASK.get(backbone.kind), "target_modules": targets}
    if backbone.kind == "vision":
        common["modules_to_save"] = ["classifier"]
    virtual = {"task_type": TASK.get(backbone.kind), "num_virtual_tokens": 4}
    found = {
        "lora": peft.LoraConfig(
            r=3, lora_alpha=5, rank_pattern={targets[1]: 2}, alpha_pattern={targets[0]: 7}, **common
        ),
        "rslora": peft.LoraConfig(r=4, use_rslora=True, **common),
        "pissa": peft.LoraConfig(r=2, init_lora_weights="pissa", **common),
        "dora": peft.LoraConfig(r=2, use_dora=True, **common),
        "vera": peft.VeraConfig(r=8, **common),
        "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **common),
        "ia3": peft.IA3Config(feedforward_modules=[targets[1]], **common),
    }
    if backbone.kind != "vision":
        found["prompt"] = peft.PromptTuningConfig(**virtual)
        found["p_tuning"] = peft.PromptEncoderConfig(encoder_hidden_size=8, **virtual)
    if backbone.kind in ("decoder", "encoder") or backbone.name == "t5":
        found["prefix"] = peft.PrefixTuningConfig(**virtual)
        found["prefix_network"] = peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=8, **virtual)
    if backbone.name in ("opt", "llama"):
        norms = {"opt": ["self_attn_layer_norm", "final_layer_norm"], "llama": ["input_layernorm", "norm"]}
        found["norm"] = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=norms[backbone.name])
        found["modules_to_save"] = peft.LoraConfig(
            r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=norms[backbone.name][:1]
        )
    return found


KINDS = (
    "lora",
    "rslora",
    "pissa",
    "dora",
    "vera",
    "adalora",
    "ia3",
    "prompt",
    "p_tuning",
    "prefix",
    "prefix_network",
    "norm",
    "modules_to_save",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_peft_give_the_same_here(family: str, kind: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    config = configs(backbone).get(kind)
    if config is None:
        pytest.skip("peft has no such method there")
    torch.manual_seed(3)
    theirs = peft.get_peft_model(copy.deepcopy(backbone.model), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(tmp_path)
    adapter, _ = read_peft(tmp_path, backbone)
    inputs = sample_inputs(backbone)
    expected = peft_logits(backbone, tmp_path, inputs)
    assert not torch.allclose(expected, adapter_logits(backbone, None, inputs), atol=1e-4)
    torch.testing.assert_close(adapter_logits(backbone, adapter, inputs), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_peft_trains_on_here(tmp_path: Path) -> None:
    from dollartune.attachment import Attached

    backbone = backbone_of("opt")
    for kind in ("lora", "dora", "vera", "adalora", "ia3", "prompt", "p_tuning", "prefix_network", "norm"):
        theirs = peft.get_peft_model(copy.deepcopy(backbone.model), configs(backbone)[kind])
        theirs.save_pretrained(tmp_path / kind)
        adapter, _ = read_peft(tmp_path / kind, backbone)
        tiny = tiny_backbone("opt")
        attached = Attached(tiny.model, tiny.anatomy)
        attached.put("imported", adapter)
        try:
            with attached.routed("imported"):
                losses = train(tiny, attached, adapter, 12, 0.01)
        finally:
            attached.detach()
        assert losses[-1] < losses[0], kind


def test_the_example_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny(tmp_path / "model", "llama")
    backbone = load_backbone(str(model))
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    info = {"backbone": str(model), "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
    save_adapter(tmp_path / "adapter", adapter, info)
    export_adapter(tmp_path / "adapter", tmp_path / "peft", "peft")
    code = (tmp_path / "peft" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "peft")
    names: dict[str, Any] = {}
    exec(code, names)
    ids = torch.tensor([[5, 6, 7]])
    expected = adapter_logits(backbone, adapter, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with torch.no_grad():
        found = names["model"].eval()(input_ids=ids).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
