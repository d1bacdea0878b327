"""GGUF files load as backbones: the same numbers, tokens and chat template as the weights that were written into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

from dollartune.backbones.gguf import is_gguf, read_rounding, unpacked
from dollartune.backbones.loading import load_backbone
from dollartune.backbones.locate import from_anywhere, gguf_path, resolve, source_notes
from dollartune.errors import UserError
from dollartune.testing.directory import short_tokenizer

gguf = pytest.importorskip("gguf")

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TEXT = "Return the number of rows that have a missing value, 1234."


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "gguf-cache"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return short_tokenizer()


def model_of(tokenizer: Any, tied: bool) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.15, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k as llama.cpp keeps them: the halves of each head's rotation beside each other."""
    return weight.view(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: Any, tokenizer: Any, kind: Any) -> Path:
    """A GGUF file of a LLaMA, as llama.cpp's converter lays it out."""
    config = model.config
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list([word for word, _ in words])
    out.add_token_types([3 if word in special else 1 for word, _ in words])
    out.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            weight = permuted(weight, heads) if part in name else weight
        values = weight.numpy().astype(numpy.float32)
        chosen = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        out.add_tensor(target, gguf.quantize(values, chosen), raw_dtype=chosen)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_the_numbers_are_those_that_were_written(tmp_path: Path, tokenizer: Any, tied: bool) -> None:
    model = model_of(tokenizer, tied)
    path = write(tmp_path / "some model.gguf", model, tokenizer, gguf.GGMLQuantizationType.F32)
    backbone = load_backbone(str(path))
    ids = torch.randint(3, 500, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(ids).logits, model(ids).logits)
    assert (backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight) is tied
    plain = {"add_special_tokens": False}  # which marks are added is a setting that a GGUF file has of its own
    assert backbone.processor(TEXT, **plain)["input_ids"] == tokenizer(TEXT, **plain)["input_ids"]
    assert backbone.processor.chat_template == TEMPLATE
    assert backbone.processor.model_max_length == 128
    for config in (backbone.model.config, backbone.model.generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (0, 1)  # the file's, and not LLaMA's usual 1 and 2
    assert not hasattr(backbone.model.config, "quantization_config")
    assert backbone.kind == "decoder"
    assert "nothing was rounded" in source_notes(str(path))[0]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_note_on_rounding_is_near_what_rounding_did(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    model = model_of(tokenizer, tied=True)
    path = write(tmp_path / "model.gguf", model, tokenizer, gguf.GGMLQuantizationType[kind])
    told = read_rounding(path)
    again = transformers.AutoModelForCausalLM.from_pretrained(resolve(str(path)))
    before = torch.cat([w.flatten() for w in model.state_dict().values() if w.dim() > 1])
    after = torch.cat([w.flatten() for w in again.state_dict().values() if w.dim() > 1])
    measured = float((after - before).norm() / before.norm())
    assert told.relative_error == pytest.approx(measured, rel=0.15)  # the estimate takes rounding as uniform in a step
    assert 0 < told.formats[kind] == sum(w.numel() for w in model.parameters() if w.dim() > 1)
    assert kind in source_notes(str(path))[0]


def test_one_file_is_unpacked_once_wherever_it_lies(tmp_path: Path, tokenizer: Any) -> None:
    model = model_of(tokenizer, tied=True)
    first = write(tmp_path / "model.gguf", model, tokenizer, gguf.GGMLQuantizationType.F32)
    folder = unpacked(first)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "model.gguf"
    copy.write_bytes(first.read_bytes())
    assert unpacked(copy) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # other weights under the same name and size are another folder
    assert unpacked(write(first, model, tokenizer, gguf.GGMLQuantizationType.F32)) != folder
    assert not list(folder.parent.glob(".unpacking-*"))


def test_what_cannot_be_read_is_said(tmp_path: Path, tokenizer: Any) -> None:
    whole = write(tmp_path / "model.gguf", model_of(tokenizer, True), tokenizer, gguf.GGMLQuantizationType.F32)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(UserError, match="cut short"):
        resolve(str(cut))
    other = tmp_path / "other.gguf"
    out = gguf.GGUFWriter(str(other), "no_such_family")
    out.add_tensor("token_embd.weight", numpy.zeros((32, 32), numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    with pytest.raises(UserError, match="transformers cannot read"):
        resolve(str(other))
    (tmp_path / "text.gguf").write_text("no model")
    assert not is_gguf(tmp_path / "text.gguf")
    with pytest.raises(UserError, match="neither a directory nor a GGUF file"):
        resolve(str(tmp_path / "text.gguf"))
    assert gguf_path("tiny-decoder") is None


def test_a_file_is_used_from_other_folders_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an adapter names its backbone, and a study is given to another machine."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF and more")
    (tmp_path / "notes.gguf").write_text("no such file")
    for name in ("folder", "tiny-decoder"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    names = ["model.gguf", "folder", "tiny-decoder", "notes.gguf", "owner/of-the-hub", "package:a_model/model"]
    whole = [str((tmp_path / name).resolve()) for name in names[:2]]
    assert [from_anywhere(name) for name in names] == [*whole, *names[2:]], "a folder may be called as a known model"
