"""Prompt tuning, P-tuning and prefix tuning equal the peft library's: outputs and gradients, in fp32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dollartune.attachment import Attached
from dollartune.methods.base import Method
from dollartune.methods.p_tuning import PTuning
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.testing.tiny import TinyBackbone, tiny_backbone

peft = pytest.importorskip("peft")

TASKS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "encoder": "SEQ_CLS"}
TOKENS = 5


def with_peft(backbone: TinyBackbone, config: Any) -> Any:
    """A copy of the backbone inside a peft model; trained tensors are drawn the same each time."""
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(backbone.model), config).eval()


def scale(values: Tensor) -> Tensor:
    """Weights for a loss that no symmetry of the outputs can hide from."""
    return torch.linspace(-1, 1, values.numel()).view(values.shape)


def trained(reference: Any) -> set[str]:
    """Names of the tensors that peft trains for the prompt; a classifier's head is trained beside them."""
    return {name for name, p in reference.named_parameters() if p.requires_grad and name.startswith("prompt_encoder.")}


def compare(
    backbone: TinyBackbone, method: Method[Any], reference: Any, pairs: dict[str, str], copied: Any
) -> set[str]:
    """The tensors of peft whose gradients ours has too, once outputs are equal and not those of the bare backbone.

    `pairs`: our tensor -> theirs; `copied(theirs, ours)` puts values into ours.
    """
    inputs = backbone.inputs()
    attached = Attached(backbone.model, backbone.anatomy)
    equal = set()
    try:
        ours = dict(attached.add("mine", [method]).named_parameters())
        theirs = dict(reference.named_parameters())
        with torch.no_grad():
            copied(theirs, ours)
            bare = attached(**inputs).logits
        with attached.routed("mine"):
            got = attached(**inputs).logits
        expected = reference(**inputs).logits
        real = torch.ones(got.shape[:-1], dtype=torch.bool)
        if backbone.anatomy.kind == "decoder":  # padded places hold numbers that nobody reads
            mask = inputs["attention_mask"].bool()
            real = torch.cat([torch.ones(mask.shape[0], got.shape[1] - mask.shape[1], dtype=torch.bool), mask], dim=1)
        torch.testing.assert_close(got[real], expected[real], rtol=1e-5, atol=1e-5)
        assert got.shape != bare.shape or not torch.allclose(got[real], bare[real], rtol=1e-3, atol=1e-3)
        (got[real] * scale(got[real])).sum().backward()
        (expected[real] * scale(expected[real])).sum().backward()
        for mine, other in pairs.items():
            gradient = theirs[other].grad
            assert gradient is not None
            largest = float(gradient.abs().max())
            assert largest > 0
            torch.testing.assert_close(copied.back(ours, mine), gradient, rtol=1e-4, atol=1e-5 * largest)
            equal.add(other)
    finally:
        attached.detach()
    return equal


class Same:
    """Tensors of equal shape, by name."""

    def __init__(self, pairs: dict[str, str]) -> None:
        self.pairs = pairs

    def __call__(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        for mine, other in self.pairs.items():
            ours[mine].copy_(theirs[other])

    def back(self, ours: dict[str, Any], name: str) -> Tensor:
        gradient: Tensor = ours[name].grad
        return gradient


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "bloom", "gpt_neo", "t5", "bart", "bert/classification"])
def test_prompt(name: str) -> None:
    backbone = tiny_backbone(name)
    task = TASKS[backbone.anatomy.kind]
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=TOKENS, num_transformer_submodules=1)
    mine = f"parts.0.edits.{backbone.anatomy.at('input')[0].name.replace('.', '/')}.embeddings"
    pairs = {mine: "prompt_encoder.default.embedding.weight"}
    reference = with_peft(backbone, config)
    method = PromptTuning(tokens=TOKENS, placement="before")
    assert compare(backbone, method, reference, pairs, Same(pairs)) == trained(reference)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
@pytest.mark.parametrize("name", ["opt", "llama", "t5", "bert/classification"])
def test_p_tuning(name: str, encoder: str) -> None:
    backbone = tiny_backbone(name)
    settings = {"encoder_reparameterization_type": encoder.upper(), "encoder_hidden_size": 12, "encoder_num_layers": 2}
    if encoder == "lstm":
        settings["encoder_dropout"] = 0.0
    task = TASKS[backbone.anatomy.kind]
    reference = with_peft(
        backbone,
        peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=TOKENS, num_transformer_submodules=1, **settings),
    )
    mine = f"parts.0.edits.{backbone.anatomy.at('input')[0].name.replace('.', '/')}"
    theirs = "prompt_encoder.default"
    pairs = {f"{mine}.inputs": f"{theirs}.embedding.weight"}
    pairs |= {
        f"{mine}.layers.{i}.{kind}": f"{theirs}.mlp_head.{2 * i}.{kind}"
        for i in range(2 + (encoder == "mlp"))
        for kind in ("weight", "bias")
    }
    names = dict(reference.named_parameters())
    pairs |= {f"{mine}.lstm.{n.rsplit('.', 1)[1]}": n for n in names if "lstm_head" in n}
    method = PTuning(tokens=TOKENS, encoder=encoder, hidden=12, placement="before")
    assert compare(backbone, method, reference, pairs, Same(pairs)) == trained(reference)


class Prefixes:
    """peft holds one (n, 2 L t) table, K0 V0 K1 V1 ...; we hold (heads, n, head size) per layer."""

    def __init__(self, backbone: TinyBackbone) -> None:
        self.sites = [
            site
            for site in backbone.anatomy.at("self_attn.core")
            if site.stack != "encoder" or backbone.anatomy.kind == "encoder"
        ]

    def __call__(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        heads, size = self.sites[0].heads, self.sites[0].head_size
        table = theirs["prompt_encoder.default.embedding.weight"].view(TOKENS, 2 * len(self.sites), heads, size)
        for index, site in enumerate(self.sites):
            mine = f"parts.0.edits.{site.name.replace('.', '/')}"
            ours[f"{mine}.key_prefix"].copy_(table[:, 2 * index].transpose(0, 1))
            ours[f"{mine}.value_prefix"].copy_(table[:, 2 * index + 1].transpose(0, 1))

    def back(self, ours: dict[str, Any], name: str) -> Tensor:
        gradients = []
        for site in self.sites:
            mine = f"parts.0.edits.{site.name.replace('.', '/')}"
            gradients += [ours[f"{mine}.{kind}_prefix"].grad.transpose(0, 1) for kind in ("key", "value")]
        return torch.stack(gradients, dim=1).reshape(TOKENS, -1)


FAMILIES = ["opt", "gpt2", "llama", "bloom", "gpt_neo", "bert/classification", "roberta/classification"]


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, a) for name in FAMILIES for a in ("sdpa", "eager") if a == "eager" or name not in ("bloom", "gpt_neo")],
)
def test_prefix(name: str, attention: str) -> None:
    backbone = tiny_backbone(name)
    before = backbone.model.config._attn_implementation
    backbone.model.set_attn_implementation(attention)
    reference = with_peft(
        backbone, peft.PrefixTuningConfig(task_type=TASKS[backbone.anatomy.kind], num_virtual_tokens=TOKENS)
    )
    try:
        pairs = {"": "prompt_encoder.default.embedding.weight"}
        found = compare(backbone, Prefix(tokens=TOKENS), reference, pairs, Prefixes(backbone))
        assert found == trained(reference)
    finally:
        backbone.model.set_attn_implementation(before)


class Network(Prefixes):
    """The reparameterization network: theirs ends in one linear for all layers, ours in one per layer."""

    def __call__(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        prefix = "prompt_encoder.default"
        ours["parts.0.shared.inputs"].copy_(theirs[f"{prefix}.embedding.weight"])
        for kind in ("weight", "bias"):
            ours[f"parts.0.shared.first.{kind}"].copy_(theirs[f"{prefix}.transform.0.{kind}"])
            pieces = theirs[f"{prefix}.transform.2.{kind}"].chunk(len(self.sites))
            for site, piece in zip(self.sites, pieces, strict=True):
                ours[f"parts.0.edits.{site.name.replace('.', '/')}.last.{kind}"].copy_(piece)

    def back(self, ours: dict[str, Any], name: str) -> Tensor:
        if name in ("weight", "bias"):
            return torch.cat(
                [ours[f"parts.0.edits.{site.name.replace('.', '/')}.last.{name}"].grad for site in self.sites]
            )
        gradient: Tensor = ours[name].grad
        return gradient


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "bert/classification"])
def test_prefix_with_its_network(name: str) -> None:
    backbone = tiny_backbone(name)
    config = peft.PrefixTuningConfig(
        task_type=TASKS[backbone.anatomy.kind],
        num_virtual_tokens=TOKENS,
        prefix_projection=True,
        encoder_hidden_size=12,
    )
    if name == "llama":  # the library sizes its table by the key/value heads itself
        config.num_attention_heads = backbone.model.config.num_key_value_heads
    reference = with_peft(backbone, config)
    prefix = "prompt_encoder.default"
    pairs = {
        "parts.0.shared.inputs": f"{prefix}.embedding.weight",
        "parts.0.shared.first.weight": f"{prefix}.transform.0.weight",
        "parts.0.shared.first.bias": f"{prefix}.transform.0.bias",
        "weight": f"{prefix}.transform.2.weight",
        "bias": f"{prefix}.transform.2.bias",
    }
    method = Prefix(tokens=TOKENS, reparameterize=True, hidden=12)
    assert compare(backbone, method, reference, pairs, Network(backbone)) == trained(reference)
