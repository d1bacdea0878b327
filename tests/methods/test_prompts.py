"""What prompts start from, where they go, and what they say when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment import attach
from dollartune.backbones.loading import Backbone
from dollartune.errors import UserError
from dollartune.export.peft_format import write_peft
from dollartune.methods.p_tuning import PTuning
from dollartune.methods.prefix import Prefix
from dollartune.methods.prompt import PromptTuning
from dollartune.testing import MethodSuite
from dollartune.testing.tiny import TinyBackbone, tiny_backbone


class Words:
    """A tokenizer that knows a few words."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) + 10 for word in text.split()]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(i) for i in ids]


def start(method: Any, name: str = "opt", processor: Any = None) -> tuple[torch.Tensor, torch.Tensor, Any]:
    backbone = tiny_backbone(name)
    attached = attach(backbone.model, method, processor=processor)
    adapter = attached.adapters["default"]
    attached.detach()
    embedding: Any = backbone.model.get_submodule(backbone.anatomy.at("input")[0].entry)
    return (
        adapter.parts[0].edits[backbone.anatomy.at("input")[0].name.replace(".", "/")].embeddings,
        embedding.weight,
        adapter,
    )


def test_text_becomes_the_first_tokens() -> None:
    rows, table, adapter = start(PromptTuning(tokens=5, init="text", text="is it positive"), processor=Words())
    assert torch.equal(rows, table[[12, 12, 18, 12, 12]])
    described = adapter.methods[0].describe()
    assert described["text_ids"] == [12, 12, 18]
    again, _, _ = start(
        PromptTuning(**{k: v for k, v in described.items() if k != "method"})
    )  # loading needs no tokenizer
    assert torch.equal(again, rows)


def test_text_needs_a_tokenizer_and_a_text() -> None:
    with pytest.raises(UserError, match="it takes a tokenizer"):
        start(PromptTuning(init="text", text="hello"))
    with pytest.raises(UserError, match="needs the text"):
        start(PromptTuning(init="text"), processor=Words())


def test_vocabulary_rows_and_noise() -> None:
    rows, table, _ = start(PromptTuning(tokens=6))
    assert all((table == row).all(dim=1).any() for row in rows)
    noise, _, _ = start(PromptTuning(tokens=6, init="random"))
    assert not any((table == row).all(dim=1).any() for row in noise)


@pytest.mark.parametrize(("placement", "same"), [("before", False), ("after_first", True), ("auto", True)])
def test_placement_decides_what_the_first_position_reads(placement: str, same: bool) -> None:
    backbone = tiny_backbone("bert/classification")
    attached = attach(backbone.model, PromptTuning(tokens=3, placement=placement))
    seen = []
    handle = backbone.model.bert.encoder.layer[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    inputs = backbone.inputs()
    try:
        with torch.no_grad():
            attached(**inputs)
            with attached.routed(None):
                attached(**inputs)
    finally:
        handle.remove()
        attached.detach()
    assert seen[0].shape[1] == seen[1].shape[1] + 3
    assert torch.allclose(seen[0][:, 0], seen[1][:, 0]) is same


@pytest.mark.parametrize("stacks", ["first", "encoder", "decoder", "all", "encoder, decoder"])
def test_stacks(stacks: str) -> None:
    sites = PTuning(stacks=stacks).sites(tiny_backbone("t5").anatomy)
    expected = {"first": ["encoder"], "all": ["encoder", "decoder"], "encoder, decoder": ["encoder", "decoder"]}.get(
        stacks, [stacks]
    )
    assert [site.stack for site in sites] == expected


def test_unknown_stacks_are_refused() -> None:
    with pytest.raises(UserError, match="stacks: 'encoder' is not understood here"):
        PromptTuning(stacks="encoder").sites(tiny_backbone("opt").anatomy)


def test_classes_read_at_the_end_of_the_text_cannot_have_virtual_tokens() -> None:
    backbone = tiny_backbone("bart/classification")
    attached = attach(backbone.model, PromptTuning(tokens=2))
    try:
        with pytest.raises(UserError, match="which virtual tokens replace"):
            attached(**backbone.inputs())
    finally:
        attached.detach()


def test_prefixes_as_a_cache_need_every_layer() -> None:
    with pytest.raises(UserError, match="which all layers must have"):
        attach(tiny_backbone("bloom").model, Prefix(layers="first 1"))


def test_a_prefix_in_the_backbone_leaves_no_trace() -> None:
    backbone = tiny_backbone("llama")
    before = backbone.model.config._attn_implementation
    attach(backbone.model, Prefix(tokens=2)).detach()
    assert backbone.model.config._attn_implementation == before
    assert not [name for name, module in backbone.model.named_modules() if "dollartune_attached" in vars(module)]


class TestPrefixNetwork(MethodSuite):
    """Prefix tuning by its network; stacked adapters hold what it computed."""

    method = Prefix(tokens=3, reparameterize=True, hidden=8)
    overfit_lr = 0.05


class TestPrefixAsCache(MethodSuite):
    """Families with attention code of their own."""

    method = Prefix(tokens=3)
    families = ("bloom", "gpt_neo")
    overfit_lr = 0.2


class TestPromptsOfClassifiers(MethodSuite):
    """Virtual tokens where a decoder's classification head reads the last place."""

    method = PromptTuning(tokens=3)
    families = ("opt/classification", "gpt2/classification", "llama/classification", "roberta", "albert", "deit")
    overfit_lr = 0.3
    overfit_drop = 0.005

    def test_exchange_with_peft(self, backbone: TinyBackbone, tmp_path: Path) -> None:
        """peft reads padding there, so what it would answer is refused, with that reason."""
        if backbone.anatomy.kind != "decoder":
            super().test_exchange_with_peft(backbone, tmp_path)
            return
        wrapped = Backbone(backbone.name, backbone.model, None, backbone.anatomy, backbone.objective)
        with pytest.raises(UserError, match="padding in every row but the longest"):
            write_peft(tmp_path / "peft", wrapped, self.new_adapter(backbone, noise=0.05))


class TestRecurrentPTuning(MethodSuite):
    """P-tuning by an LSTM, in both stacks of an encoder-decoder."""

    method = PTuning(tokens=2, encoder="lstm", hidden=6, lstm_layers=1, stacks="all")
    families = ("opt", "bart", "t5", "bert")
    overfit_drop = 0.005
