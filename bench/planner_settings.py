"""What the planner's benchmark predicts and measures: forty settings on five backbones of ordinary families, and 48 on the
embedded backbones and on three of published sizes, in two number formats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import transformers

from dollartune.backbones.embedded import embedded_path
from dollartune.backbones.kind import Objective
from dollartune.methods.registry import build_method
from dollartune.planner.dry_run import BatchShape
from dollartune.train.settings import TrainingSettings

EMBEDDED = ("tiny-decoder", "tiny-encoder", "tiny-seq2seq")
PUBLISHED = ("MiniLM-L6", "DeiT-tiny", "SmolLM2-135M")
"""Of the published sizes; neither memory nor seconds depend on the weights' values, so these are random too."""
BACKBONES = {
    "opt": "bfloat16", "llama": "float32", "t5": "float32", "bert": "bfloat16", "vit": "float32",
    **dict.fromkeys((*EMBEDDED, *PUBLISHED), "float32"),
    **{f"{name} in bf16": "bfloat16" for name in (*EMBEDDED, *PUBLISHED)},
}  # fmt: skip
"""Backbone -> number format."""
TRAINING = TrainingSettings(patience=None)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    model: str
    method: str
    rows: int
    prompt: int
    answer: int

    @property
    def dtype(self) -> str:
        return BACKBONES[self.model]

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.rows, self.prompt, self.answer)

    @property
    def name(self) -> str:
        """For example `opt lora 8 x 160+2`."""
        return f"{self.model} {self.method} {self.rows} x {self.prompt}+{self.answer}"

    def methods(self, objective: Objective) -> list[Any]:
        """As a trial would attach them."""
        method = build_method(self.method)
        head = objective == "classification" and not {"head", "model"} & set(method.kinds)
        return [method, build_method("head")] if head else [method]


def settings() -> list[Setting]:
    """Methods, rows and lengths take turns."""
    grids: dict[str, list[tuple[str, int, int, int]]] = {
        "opt": [
            ("lora", 8, 160, 2), ("full", 4, 96, 2), ("bitfit", 8, 96, 16), ("ia3", 16, 64, 2), ("prompt(tokens=20)", 8, 64, 2),
            ("prefix", 8, 128, 2), ("houlsby", 4, 192, 2), ("lora(rank=16, where='all_linear')", 8, 96, 2),
        ],
        "llama": [
            ("lora", 4, 128, 4), ("full", 4, 64, 4), ("bitfit", 4, 96, 4), ("ia3", 8, 64, 4), ("prompt(tokens=20)", 4, 96, 4),
            ("dora", 4, 64, 4), ("pfeiffer", 8, 48, 4), ("norm", 4, 128, 4),
        ],
        "t5": [
            ("lora", 8, 96, 16), ("full", 4, 64, 16), ("bitfit", 8, 64, 16), ("ia3", 4, 128, 8), ("prompt(tokens=20)", 4, 96, 8),
            ("houlsby", 8, 64, 8), ("lora(layers='last 50%')", 8, 96, 8), ("norm", 8, 64, 32),
        ],
        "bert": [
            ("lora", 16, 96, 0), ("full", 8, 96, 0), ("bitfit", 16, 64, 0), ("ia3", 16, 128, 0), ("head", 16, 128, 0),
            ("prefix", 8, 128, 0), ("pfeiffer", 16, 64, 0), ("layer_freezing", 8, 128, 0),
        ],
        "vit": [
            ("lora", 4, 1, 0), ("full", 4, 1, 0), ("bitfit", 8, 1, 0), ("ia3", 4, 1, 0), ("prompt(tokens=20)", 4, 1, 0),
            ("houlsby", 4, 1, 0), ("lora(rank=16, where='all_linear')", 6, 1, 0), ("norm", 6, 1, 0),
        ],
    }  # fmt: skip
    for model in BACKBONES:
        if (name := model.removesuffix(" in bf16")) in EMBEDDED:
            answer = 0 if name == "tiny-encoder" else 4
            grids[model] = [
                ("lora", 16, 64, answer),
                ("full", 8, 96, answer),
                ("ia3", 16, 96, answer),
                ("prefix", 8, 64, answer),
            ]
        elif name in PUBLISHED:
            rows, prompt, answer = {"MiniLM-L6": (16, 96, 0), "DeiT-tiny": (8, 1, 0), "SmolLM2-135M": (4, 64, 4)}[name]
            grids[model] = [(method, rows, prompt, answer) for method in ("lora", "full", "ia3", "prompt(tokens=20)")]
    columns = [[Setting(model, *cell) for cell in cells] for model, cells in grids.items()]
    return [setting for row in zip_longest(*columns) for setting in row if setting is not None]


def config_of(name: str, small: bool = False) -> tuple[Any, Any, Objective]:
    """A shape of a real family with 10 to 30 million parameters, the class that builds it, and what its head does.

    Args:
        small: the same with a single layer, on which all code can be loaded at no cost.
    """
    words = {"vocab_size": 8000, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    name = name.removesuffix(" in bf16")
    layers = 1 if small else {"opt": 8, "t5": 4, "DeiT-tiny": 12, "SmolLM2-135M": 30}.get(name, 6)
    t: Any = transformers
    if name in EMBEDDED:
        config = t.AutoConfig.from_pretrained(embedded_path(name))
        if small:
            config.num_hidden_layers = 1
            if hasattr(config, "num_decoder_layers"):
                config.num_decoder_layers = 1
        auto, objective = {
            "tiny-decoder": (t.AutoModelForCausalLM, "language"),
            "tiny-encoder": (t.AutoModelForSequenceClassification, "classification"),
            "tiny-seq2seq": (t.AutoModelForSeq2SeqLM, "language"),
        }[name]
        return config, auto, objective
    if name == "SmolLM2-135M":
        config = t.LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
            max_position_embeddings=8192, tie_word_embeddings=True, **words | {"vocab_size": 49_152},
        )  # fmt: skip
        return config, t.AutoModelForCausalLM, "language"
    if name == "MiniLM-L6":
        config = t.BertConfig(
            hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536, num_labels=4,
            **words | {"vocab_size": 30_522},
        )  # fmt: skip
        return config, t.AutoModelForSequenceClassification, "classification"
    if name == "DeiT-tiny":
        config = t.DeiTConfig(
            hidden_size=192, num_hidden_layers=layers, num_attention_heads=3, intermediate_size=768, num_labels=4,
            architectures=["DeiTForImageClassification"],
        )  # fmt: skip
        return config, t.AutoModelForImageClassification, "classification"
    if name == "opt":
        config = t.OPTConfig(
            hidden_size=384, word_embed_proj_dim=384, num_hidden_layers=layers, ffn_dim=1536, num_attention_heads=6,
            max_position_embeddings=512, **words,
        )  # fmt: skip
        return config, t.AutoModelForCausalLM, "language"
    if name == "llama":
        config = t.LlamaConfig(
            hidden_size=320, intermediate_size=896, num_hidden_layers=layers, num_attention_heads=5,
            num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=True, **words,
        )  # fmt: skip
        return config, t.AutoModelForCausalLM, "language"
    if name == "t5":
        config = t.T5Config(
            d_model=320, d_kv=64, d_ff=768, num_layers=layers, num_heads=5, feed_forward_proj="gated-gelu",
            decoder_start_token_id=0, **words,
        )  # fmt: skip
        return config, t.AutoModelForSeq2SeqLM, "language"
    if name == "bert":
        config = t.BertConfig(
            hidden_size=384, num_hidden_layers=layers, num_attention_heads=6, intermediate_size=1536, num_labels=4,
            **words,
        )  # fmt: skip
        return config, t.AutoModelForSequenceClassification, "classification"
    config = t.ViTConfig(
        hidden_size=320, num_hidden_layers=layers, num_attention_heads=5, intermediate_size=1280, image_size=160,
        patch_size=16, num_labels=4,
    )  # fmt: skip
    return config, t.AutoModelForImageClassification, "classification"
