"""GGUF of a merged model: weights, tokens, marks and chat template come back; what the file cannot hold is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dollartune.attachment import Adapter
from dollartune.attachment.merging import Merged
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.export import merged as merged_module
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.gguf_format import write_gguf
from dollartune.export.handover import export_adapter
from dollartune.export.scoring import adapter_logits, sample_inputs
from dollartune.methods.base import Method
from dollartune.methods.bitfit import BitFit
from dollartune.methods.full import Full
from dollartune.methods.lora import LoRA
from dollartune.methods.prompt import PromptTuning
from dollartune.testing.directory import short_tokenizer, write_tiny
from dollartune.testing.practice import perturb

gguf = pytest.importorskip("gguf")

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
INFO: dict[str, Any] = {"backbone": "tiny", "task": {"name": "colours", "prompt": "Which colour? {text}\nAnswer:"}}
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "gguf-format-cache"))


def byte_level() -> Any:
    tokenizer = short_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def sentence_piece() -> Any:
    """Bytes, letters and a few pieces, as LLaMA's first tokenizers are."""
    marks = ["<unk>", "<s>", "</s>"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁th", "e"), ("▁t", "h"), ("e", "r"), ("▁", "a")]
    pieces = dict.fromkeys("".join(pair) for pair in merges)
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    words = [*marks, *(f"<0x{number:02X}>" for number in range(256)), *pieces, *letters]
    plain = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def backbone_of(
    folder: Path, tokenizer: Any, kind: str = "Llama", dtype: torch.dtype = torch.float32, **more: Any
) -> Backbone:
    settings = {**SIZES, "vocab_size": len(tokenizer) + 3, **more}  # more rows than tokens, as many models have
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_backbone(str(folder), "language", dtype=dtype)


def adapter_of(backbone: Backbone, *methods: Method[Any]) -> Adapter:
    adapter = Adapter(methods, backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    return adapter


def split_as_qwen() -> Any:
    """Words by a pattern, as most newer tokenizers split them."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = byte_level()
    pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


CASES = [
    ("Llama", byte_level, torch.float32, {"tie_word_embeddings": True}),
    ("Llama", byte_level, torch.bfloat16, {"tie_word_embeddings": False}),
    (
        "Llama",
        sentence_piece,
        torch.float32,
        {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    ("Mistral", byte_level, torch.float32, {"sliding_window": None}),
    ("Qwen2", split_as_qwen, torch.float16, {}),
    ("Qwen3", split_as_qwen, torch.float32, {"head_dim": 128}),
]


@pytest.mark.parametrize(("kind", "tokenizer", "dtype", "more"), CASES)
def test_what_is_read_back_is_the_merged_model(
    tmp_path: Path, kind: str, tokenizer: Any, dtype: torch.dtype, more: dict[str, Any]
) -> None:
    backbone = backbone_of(tmp_path / "model", tokenizer(), kind, dtype, **more)
    adapter = adapter_of(backbone, LoRA(rank=2, where="self_attn.q self_attn.k self_attn.v mlp.up"))
    lines = write_gguf(tmp_path / "out", backbone, adapter, INFO)
    assert "logits differ from the adapter's by at most" in lines[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.gguf"]
    again = load_backbone(str(tmp_path / "out" / "model.gguf"))
    assert again.processor.chat_template == backbone.processor.chat_template
    assert (again.processor.bos_token, again.processor.eos_token) == ("<s>", "</s>")
    ends = again.model.generation_config.eos_token_id
    assert (again.model.config.eos_token_id, ends if isinstance(ends, int) else ends[0]) == (2, 2)
    inputs = sample_inputs(backbone)
    wide = load_backbone(str(tmp_path / "model"), "language")
    expected = adapter_logits(wide, adapter.float() if dtype != torch.float32 else adapter, inputs)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(adapter_logits(again, None, inputs), expected, atol=tolerance, rtol=0)
    assert float((adapter_logits(wide, None, inputs) - expected).abs().max()) > 10 * tolerance


@pytest.mark.parametrize("fault", ["untuned", "unpermuted"])
def test_a_file_of_other_weights_is_never_called_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    backbone = backbone_of(tmp_path / "model", byte_level())
    adapter = adapter_of(backbone, LoRA(rank=2))
    if fault == "untuned":
        monkeypatch.setattr(merged_module, "merge", lambda *args, **settings: Merged())
    else:
        monkeypatch.setattr("dollartune.export.gguf_format._reordered", lambda name, weight, config: weight)
    with pytest.raises(
        UserError, match="the GGUF file, read back by transformers, does not give what the adapter gives"
    ):
        write_gguf(tmp_path / "out", backbone, adapter, INFO)
    assert not (tmp_path / "out").exists()


def with_step(change: Any) -> Any:
    tokenizer = byte_level()
    change(tokenizer.backend_tokenizer)
    return tokenizer


def lower(plain: Tokenizer) -> None:
    plain.normalizer = normalizers.Lowercase()


def other_words(plain: Tokenizer) -> None:
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def other_marks(plain: Tokenizer) -> None:
    plain.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 3)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lower, "Lowercase"),
        (other_words, "a rule that llama.cpp has no name for"),
        (other_marks, "other marks around a text"),
    ],
)
def test_tokenizers_that_a_file_cannot_hold_are_refused(tmp_path: Path, change: Any, why: str) -> None:
    backbone = backbone_of(tmp_path / "model", byte_level())
    backbone.processor = with_step(change)
    with pytest.raises(UserError, match=why) as refused:
        write_gguf(tmp_path / "out", backbone, adapter_of(backbone, LoRA(rank=2)), INFO)
    assert "--format merged" in str(refused.value.hint)


REFUSED: list[tuple[str, dict[str, Any], Any, str]] = [
    (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        LoRA,
        "positions are scaled",
    ),
    ("Llama", {"hidden_act": "gelu"}, LoRA, "gelu"),
    ("Mistral", {"sliding_window": 16}, LoRA, "slides over a window"),
    ("Llama", {}, BitFit, "q_proj.bias"),
    ("Gemma", {}, LoRA, "this backbone is gemma"),
    ("Llama", {}, PromptTuning, "cannot be merged"),
]


@pytest.mark.parametrize(("kind", "more", "method", "why"), REFUSED)
def test_models_that_a_file_cannot_hold_are_refused(
    tmp_path: Path, kind: str, more: dict[str, Any], method: Any, why: str
) -> None:
    backbone = backbone_of(tmp_path / "model", byte_level(), kind, **more)
    with pytest.raises(UserError, match=why):
        write_gguf(tmp_path / "out", backbone, adapter_of(backbone, method()), INFO)
    assert not (tmp_path / "out").exists()


def test_a_word_level_tokenizer_and_a_classifier_are_refused_with_what_there_is(tmp_path: Path) -> None:
    for name, why in (
        ("llama", "of the kind WordLevel"),
        ("llama/classification", "no place for a classification head"),
    ):
        objective = "classification" if "/" in name else "language"
        folder = write_tiny(tmp_path / name.replace("/", "-"), name)
        labels = ("a", "b") if "/" in name else ()
        backbone = load_backbone(str(folder), objective, labels)  # type: ignore[arg-type]
        save_adapter(
            tmp_path / f"{objective}-adapter",
            adapter_of(backbone, Full()),
            {
                "backbone": backbone.name, "objective": objective, "tokenizer": tokenizer_hash(backbone.processor),
                "task": {
                    **INFO["task"], "label_words": {"a": "yes", "b": "no"}, "kind": "classification", "metric": "accuracy",
                    "max_answer_tokens": 4,
                },
            },
        )  # fmt: skip
        with pytest.raises(UserError, match=why) as refused:
            export_adapter(tmp_path / f"{objective}-adapter", tmp_path / "out", "gguf")
        assert "What can serve this adapter" in refused.value.message
        assert "--format merged" in str(refused.value.hint)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_a_bias_without_a_place_refuses_every_format_of_merged_weights(tmp_path: Path, form: str) -> None:
    backbone = backbone_of(tmp_path / "model", byte_level(), "Qwen3", head_dim=128)
    facts = {
        **INFO,
        "backbone": backbone.name,
        "objective": "language",
        "tokenizer": tokenizer_hash(backbone.processor),
    }
    save_adapter(tmp_path / "adapter", adapter_of(backbone, BitFit()), facts)
    with pytest.raises(UserError, match="has no place") as refused:
        export_adapter(tmp_path / "adapter", tmp_path / "out", form)
    assert "yes, export --format" not in refused.value.message
    assert "export --format merged and" not in refused.value.message


@pytest.mark.parametrize(("named", "written"), [("default", TEMPLATE), ("rag", None)])
def test_of_several_chat_templates_the_default_one_is_written(tmp_path: Path, named: str, written: str | None) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = {named: TEMPLATE, "tool_use": "{{ tools }}"}
    backbone = backbone_of(tmp_path / "model", tokenizer)
    assert isinstance(backbone.processor.chat_template, dict)
    write_gguf(tmp_path / "out", backbone, adapter_of(backbone, LoRA(rank=2)), INFO)
    assert load_backbone(str(tmp_path / "out" / "model.gguf")).processor.chat_template == written
