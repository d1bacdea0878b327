"""Backbones of a published shape with random weights, and rows of a published length: times do not depend on values."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PAD, END = 1, 2


def opt(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50272,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.1,
) -> Any:
    """A causal language model of OPT's architecture; the defaults are OPT-125m's."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=layers,
        ffn_dim=4 * width,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OPTForCausalLM(config).to(dtype).eval()


def flan_t5_xl(dtype: torch.dtype, dropout: float = 0.1) -> Any:
    """An encoder-decoder of FLAN-T5-XL's shape, for a GPU."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, vocab_size=32128, dropout_rate=dropout,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("cuda"):
        return T5ForConditionalGeneration(config).to(dtype).eval()


def llama_7b(dtype: torch.dtype) -> Any:
    """A decoder of LLaMA-7B's shape, for a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("cuda"):
        return LlamaForCausalLM(LlamaConfig()).to(dtype).eval()


def boolq_lengths(count: int, seed: int = 0) -> list[int]:
    """Prompt lengths of BoolQ examples in tokens (1.3 per word and 16 of the template), of the real ones where they are at
    hand; else drawn with their mean and spread. The longest row of 64 has about 450."""
    rng = random.Random(seed)
    path = DATA / "boolq" / "train.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf8") as file:
            rows = [json.loads(line) for line in file]
        words = [len(f"{row['question']} {row['passage']}".split()) for row in rng.sample(rows, count)]
    else:
        words = [int(min(360, max(30, rng.lognormvariate(math.log(100), 0.45)))) for _ in range(count)]
    return [min(512, int(1.3 * n) + 16) for n in words]


def token_rows(lengths: list[int], seed: int = 0, vocabulary: int = 50000) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of random tokens; the answer is a label word and the end mark."""
    rng = random.Random(seed)
    return [([rng.randrange(4, vocabulary) for _ in range(n)], [rng.choice([100, 200]), END]) for n in lengths]
