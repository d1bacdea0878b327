"""Backbones of a published shape with random weights: times do not depend on the values."""

from __future__ import annotations

from typing import Any

import torch


def opt(
    layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50272, dtype: torch.dtype = torch.float32
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
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OPTForCausalLM(config).to(dtype).eval()
