"""Parameter counts that papers and libraries state, from configurations alone: every model here is on the meta device.

Sources: the benchmark on FLAN-T5-XL (its Table 3), the libraries' own counts, and the settings of the five studies
    that this project unifies.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from dollartune.attachment.adapter import Adapter
from dollartune.backbones.anatomy import Anatomy
from dollartune.backbones.loading import anatomy_of
from dollartune.methods.registry import build_method


def _flan_t5_xl(t: Any) -> tuple[Any, Any]:
    config = t.T5Config(
        vocab_size=32128,
        d_model=2048,
        d_kv=64,
        d_ff=5120,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return t.AutoModelForSeq2SeqLM, config


def _mt0_large(t: Any) -> tuple[Any, Any]:
    config = t.MT5Config(
        vocab_size=250112,
        d_model=1024,
        d_kv=64,
        d_ff=2816,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=16,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return t.AutoModelForSeq2SeqLM, config


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> Any:
    def build(t: Any) -> tuple[Any, Any]:
        config = t.LlamaConfig(
            vocab_size=32000,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
        )
        return t.AutoModelForCausalLM, config

    return build


def _opt_350m(t: Any) -> tuple[Any, Any]:
    config = t.OPTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        ffn_dim=4096,
        num_attention_heads=16,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    )
    return t.AutoModelForCausalLM, config


MODELS = {
    "flan-t5-xl": _flan_t5_xl,
    "mt0-large": _mt0_large,
    "llama-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-70b": _llama(8192, 28672, 80, 64, 8),
    "opt-125m": lambda t: (t.AutoModelForCausalLM, t.OPTConfig()),
    "opt-350m": _opt_350m,
    "bert-base": lambda t: (t.AutoModelForSequenceClassification, t.BertConfig()),
    "vit-base": lambda t: (t.AutoModelForImageClassification, t.ViTConfig()),
}


@cache
def empty(name: str) -> tuple[nn.Module, Anatomy]:
    """The model without weights, and its anatomy."""
    import transformers

    auto, config = MODELS[name](transformers)
    with torch.device("meta"):
        model = auto.from_config(config)
    return model, anatomy_of(model)


def count(name: str, method: str) -> int:
    """By formula; held against the real shapes."""
    model, anatomy = empty(name)
    built = build_method(method)
    sites = built.sites(anatomy)
    formula = sum(built.count(site) for site in sites) + built.count_shared(sites, anatomy)
    with torch.device("meta"):
        assert Adapter([built], anatomy, model).count() == formula
    return formula


TWO = "two_vectors=True, where='attention -q -o mlp.up'"
TABLE_3 = {
    f"ia3({TWO})": 933_888,
    "lora(rank=3, where='attention')": 3_538_944,
    f"ia3({TWO}, layers='first 50%')": 466_944,
    "lora(rank=3, where='attention', layers='first 50%')": 1_769_472,
    f"ia3({TWO}, layers='last 50%')": 466_944,
    "lora(rank=3, where='attention', layers='last 50%')": 1_769_472,
    f"ia3({TWO}, layers='random 50%')": 466_944,
    "lora(rank=3, where='attention', layers='random 50%')": 1_769_472,
    "lora(rank=3, where='attention -self_attn')": 1_179_648,
    "lora(rank=3, where='attention -cross_attn')": 2_359_296,
    "lora(rank=3, where='attention -q -o')": 1_769_472,
    "ia3(two_vectors=True, where='mlp.up')": 344_064,
    "ia3(two_vectors=True, where='attention -q -o')": 589_824,
    "bitfit": 1_179_648,
}


@pytest.mark.parametrize(("method", "expected"), TABLE_3.items())
def test_flan_t5_xl(method: str, expected: int) -> None:
    assert count("flan-t5-xl", method) == expected


def test_flan_t5_xl_published_ia3_has_one_vector() -> None:
    assert count("flan-t5-xl", "ia3") == 540_672


def test_flan_t5_xl_whole() -> None:
    """The paper's model unties the embeddings; transformers 5 ties them whatever the configuration says."""
    untied = count("flan-t5-xl", "full")
    assert untied in (2_849_757_184, 2_783_959_040)
    model, _ = empty("flan-t5-xl")
    assert untied == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [("llama-7b", 8, 4_194_304), ("llama-13b", 8, 6_553_600), ("llama-70b", 8, 16_384_000)],
)
def test_llama_lora(name: str, rank: int, expected: int) -> None:
    assert count(name, f"lora(rank={rank})") == expected


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [
        ("opt-125m", 2, 73_728),
        ("opt-125m", 4, 147_456),
        ("opt-125m", 8, 294_912),
        ("opt-350m", 4, 393_216),
        ("opt-350m", 8, 786_432),
        ("opt-350m", 16, 1_572_864),
    ],
)
def test_opt_lora(name: str, rank: int, expected: int) -> None:
    assert count(name, f"lora(rank={rank})") == expected


def test_mt0_large_lora() -> None:
    """2.36 M of 1.2 G, 0.2 %."""
    found = count("mt0-large", "lora(rank=8)")
    assert found == 2_359_296
    model, _ = empty("mt0-large")
    assert 0.0019 < found / sum(p.numel() for p in model.parameters()) < 0.0025


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("query", 294_912),
        ("value", 294_912),
        ("key", 294_912),
        ("query value", 589_824),
        ("query key", 589_824),
        ("value key", 589_824),
    ],
)
def test_vit_base_lora_by_target(where: str, expected: int) -> None:
    """The six sets of targets of the X-ray study, at rank 16."""
    assert count("vit-base", f"lora(rank=16, where='{where}')") == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lora(rank=8, where='all_linear')", 12 * (4 * 8 * 1536 + 2 * 8 * 3840)),
        ("dora(rank=8)", 12 * 2 * (8 * 1536 + 768)),
        ("adalora(rank=12, where='self_attn.q self_attn.v')", 12 * 2 * 12 * 1537),
        ("vera(rank=256)", 12 * 2 * (256 + 768)),
        ("ia3", 12 * (2 * 768 + 3072)),
        ("bitfit", 12 * (5 * 768 + 3072)),
        ("bitfit(where='all_linear norm')", 12 * (7 * 768 + 3072)),
        ("norm", 12 * 2 * 2 * 768),
        ("intrinsic(dimension=896)", 896),
        ("layer_freezing(train='last 2')", 2 * 7_087_872),
        ("head", 1538),
        ("diff_pruning(where='self_attn.q')", 12 * (2 * 768 * 768 + 1)),
    ],
)
def test_bert_base(method: str, expected: int) -> None:
    assert count("bert-base", method) == expected


ADDITIONS = [
    ("flan-t5-xl", "prompt(tokens=100)", 204_800),
    ("flan-t5-xl", "prompt(tokens=100, stacks='all')", 409_600),
    ("flan-t5-xl", "p_tuning(tokens=100, hidden=2048)", 12_793_856),
    ("flan-t5-xl", "prefix(tokens=100, stacks='decoder')", 9_830_400),
    ("flan-t5-xl", "prefix(tokens=100, stacks='decoder', reparameterize=True, hidden=800)", 80_585_504),
    ("flan-t5-xl", "prefix(tokens=100, where='attention')", 72 * 2 * 100 * 2048),
    ("llama-70b", "prefix(tokens=10)", 80 * 2 * 10 * 8 * 128),  # by key/value heads
    ("opt-125m", "prompt(tokens=20)", 15_360),
    ("opt-350m", "prompt(tokens=20)", 10_240),  # its embeddings are 512 wide
    ("bert-base", "pfeiffer", 894_528),
    ("bert-base", "houlsby", 1_789_056),
    ("bert-base", "parallel", 894_528),
    ("bert-base", "compacter", 57_088),
    ("bert-base", "compacter(plus_plus=True)", 28_576),
    ("bert-base", "low_rank_adapter(rank=1)", 24 * 2376),
    ("bert-base", "phm_adapter", 24 * (2 * (64 + 768 * 24 // 4) + 24 + 768)),
    ("bert-base", "phm_adapter(share_rule=True)", 64 + 24 * (2 * 768 * 24 // 4 + 24 + 768)),
    ("bert-base", "adapter_drop(drop=5)", 7 * 74_544),
    ("bert-base", "adapter_bias", 12 * 2 * 768),
    ("bert-base", "adapter_fusion(parts=['pfeiffer', 'pfeiffer'])", 21_252_096),
    ("bert-base", "adapter_fusion(parts=['pfeiffer', 'pfeiffer', 'compacter(plus_plus=True)'])", 21_252_096),
    ("llama-7b", "reft(rank=4, layers='0')", 32_772),
    ("llama-7b", "reft(rank=4, share=False)", 32 * 2 * 32_772),
    ("vit-base", "prompt(tokens=50)", 38_400),
    ("bert-base", "gated(inner='pfeiffer')", 894_528 + 12 * 769),
]


@pytest.mark.parametrize(("name", "method", "expected"), ADDITIONS)
def test_additions(name: str, method: str, expected: int) -> None:
    assert count(name, method) == expected
