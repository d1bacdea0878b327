"""Heads of ours where transformers has none for a family: what they read, how checkpoints fill them, what may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dollartune.attachment.attached import attach
from dollartune.backbones.loading import _auto_class, load_backbone
from dollartune.errors import UserError
from dollartune.export.arithmetic import write_lora
from dollartune.export.merged import write_merged
from dollartune.export.peft_format import write_peft
from dollartune.methods.registry import build_method
from dollartune.testing.practice import perturb

MARKS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def stored(config: Any, auto: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def granite(tmp_path: Path) -> Any:
    """(checkpoint of a language model whose family has no classifier, the model)."""
    config = transformers.GraniteConfig(**MARKS, **WIDTH, num_key_value_heads=2)
    return tmp_path, stored(config, transformers.AutoModelForCausalLM, tmp_path)


def test_a_classifier_reads_the_last_real_token_on_the_checkpoints_weights(granite: Any) -> None:
    folder, model = granite
    backbone = load_backbone(str(folder), "classification", ("a", "b", "c"))
    assert torch.equal(backbone.model.model.embed_tokens.weight, model.model.embed_tokens.weight)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = backbone.model.score(torch.stack([states[0, 3], states[1, 1]]))
        found = backbone.model(input_ids=ids, attention_mask=mask).logits
        embedded = model.model.embed_tokens(ids)
        by_embeddings = backbone.model(inputs_embeds=embedded, attention_mask=mask).logits
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(by_embeddings, expected)  # virtual tokens come as embeddings
    assert backbone.anatomy.at("head")


@pytest.mark.parametrize("method", ["head", "lora", "linear_probe"])
@pytest.mark.parametrize("skip", [True, False])
def test_no_cache_is_asked_of_layers_that_keep_none(method: str, skip: bool) -> None:
    config = transformers.Lfm2Config(**MARKS, **WIDTH, num_key_value_heads=2, layer_types=["conv", "conv"])
    model = _auto_class(config, "classification").from_config(config).eval()
    attached = attach(model, build_method(method))
    perturb(attached.adapters["default"], 0.1, 0)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    with torch.no_grad(), attached.changed(skip_unused=skip):
        assert attached(input_ids=ids, attention_mask=(ids > 0).long()).logits.shape == (2, 2)


def test_values_that_no_checkpoint_holds_are_the_familys(tmp_path: Path) -> None:
    """FalconH1 multiplies by a vector that is made from its configuration, in a module without weights of its own."""
    config = transformers.FalconH1Config(
        **MARKS, **WIDTH, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=8, ssm_multipliers=[0.5, 2.0, 3.0, 0.25, 4.0],
    )  # fmt: skip
    model = stored(config, transformers.AutoModelForCausalLM, tmp_path)
    found = dict(load_backbone(str(tmp_path), "classification", ("a", "b")).model.base_model.named_buffers())
    expected = dict(model.base_model.named_buffers())
    assert any("mup_vector" in name for name in expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_text_part_whose_places_begin_behind_the_paddings_is_given_them_from_zero(tmp_path: Path) -> None:
    """Kosmos-2: padding before a row, and a cache to go on from, change nothing."""
    vision = {**WIDTH, "image_size": 32, "patch_size": 8}
    text = {**MARKS, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4, "max_position_embeddings": 64}
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=4)
    stored(config, transformers.AutoModelForImageTextToText, tmp_path)
    model = load_backbone(str(tmp_path), "language").model
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    padded, mask = torch.tensor([[0, 0, 5, 6, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids, position_ids=torch.arange(5)[None]).logits, expected)
        head = model(input_ids=padded[:, :5], attention_mask=mask[:, :5], position_ids=places[:, :5])
        rest = model(
            input_ids=padded[:, 5:], attention_mask=mask, position_ids=places[:, 5:],
            past_key_values=head.past_key_values,
        )  # fmt: skip
    torch.testing.assert_close(torch.cat([head.logits[:, 2:], rest.logits], 1), expected)


def test_nothing_is_written_that_transformers_could_not_read(granite: Any, tmp_path: Path) -> None:
    backbone = load_backbone(str(granite[0]), "classification", ("a", "b"))
    attached = attach(backbone.model, build_method("lora"))
    adapter = attached.adapters["default"]
    attached.detach()
    with pytest.raises(UserError, match="no class of granite with this head"):
        write_merged(tmp_path / "merged", backbone, adapter)
    with pytest.raises(UserError, match="no class of granite with this head"):
        write_peft(tmp_path / "peft", backbone, adapter)
    with pytest.raises(UserError, match="no class of granite with this head"):
        write_lora(tmp_path / "lora", backbone, adapter, {}, 8, None)
    assert not (tmp_path / "lora").exists()


def test_two_stacks_read_the_input_again_in_the_decoder(tmp_path: Path) -> None:
    config = transformers.MarianConfig(
        **MARKS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=0, max_position_embeddings=32,
    )  # fmt: skip
    model = stored(config, transformers.AutoModelForSeq2SeqLM, tmp_path)
    backbone = load_backbone(str(tmp_path), "classification", ("a", "b"))
    ids = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        states = model.model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 5, 6, 7]])).last_hidden_state
        torch.testing.assert_close(backbone.model(input_ids=ids).logits, backbone.model.score(states[:, -1]))


def test_the_text_part_of_a_model_with_pictures_writes_as_the_whole_does(tmp_path: Path) -> None:
    text = {**MARKS, **WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_parameters": ROPE}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    whole = stored(config, transformers.AutoModelForImageTextToText, tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert (backbone.kind, backbone.objective) == ("decoder", "language")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        torch.testing.assert_close(backbone.model(input_ids=ids).logits, expected)
        torch.testing.assert_close(backbone.model(input_ids=ids, logits_to_keep=2).logits, expected[:, -2:])
    written = backbone.model.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(written, whole.generate(ids, max_new_tokens=3, do_sample=False))
