"""The limit of positions is what a model's own table holds, tried on real models."""

from typing import Any

import pytest
import torch
import transformers

from dollartune.backbones.positions import position_limit
from dollartune.testing import tiny_backbone

LEARNED = ["opt", "gpt2", "gpt_neo", "bart", "bert", "roberta", "albert"]


def passes(model: Any, tokens: int) -> bool:
    """Whether a row of so many tokens goes through."""
    ids = torch.full((1, tokens), 5)
    more = {"decoder_input_ids": ids} if model.config.model_type == "t5" else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("family", LEARNED)
def test_a_row_as_long_as_the_limit_passes_and_a_longer_one_does_not(family: str) -> None:
    model = tiny_backbone(family).model
    limit = position_limit(model.config)
    assert limit is not None
    assert passes(model, limit)
    assert not passes(model, limit + 1)


@pytest.mark.parametrize("family", ["t5", "bloom"])
def test_distances_set_no_limit(family: str) -> None:
    model = tiny_backbone(family).model
    assert position_limit(model.config) is None
    assert passes(model, 600)  # more than the `n_positions: 512` that T5's config says


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.LlamaConfig(max_position_embeddings=128), 128),
        (transformers.Gemma2Config(max_position_embeddings=8192), 8192),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 4096}), 4096),
        (transformers.XLMRobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (transformers.MPNetConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (transformers.LEDConfig(max_encoder_position_embeddings=1000, max_decoder_position_embeddings=100), 1000),
        (transformers.MT5Config(), None),
        (transformers.ViTConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_by_family(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit
