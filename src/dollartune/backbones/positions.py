"""How many tokens a backbone can tell the positions of, from its config alone.

    learned, from 0 (BERT, GPT-2)               max_position_embeddings
    learned, behind an offset (OPT, BART)       max_position_embeddings: the table itself is longer by the offset of 2
    learned, behind the padding id (RoBERTa)    max_position_embeddings - pad_token_id - 1: the table has the first rows unused
    rotary (LLaMA, Gemma)                       max_position_embeddings: what it was trained on, though more can be computed
    relative, ALiBi (T5, BLOOM)                 no limit

Source: transformers, `create_position_ids_from_input_ids` (RoBERTa), `OPTLearnedPositionalEmbedding`, `T5Attention`.
"""

from __future__ import annotations

from typing import Any

_COUNT_FROM_PADDING = frozenset(
    [
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
"""model_type of families whose first token has the position `pad_token_id + 1`: they copy fairseq, whose padding has one."""
_WITHOUT_LIMIT = frozenset(["bloom", "longt5", "mpt", "mt5", "pop2piano", "switch_transformers", "t5", "umt5", "xlnet"])
"""model_type of families whose positions are distances. T5's config still says `n_positions: 512`, which nothing reads."""


def position_limit(config: Any) -> int | None:
    """Most tokens of a row, virtual ones included; None where the positions set no limit (T5, BLOOM, images).

    Args:
        config: a transformers config; of a model of text and images, the text's part counts (Gemma 3).
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text.model_type in _WITHOUT_LIMIT:
        return None
    # encoder-decoders with two tables (LED): a row has to fit the encoder's, which is the longer one
    names = ["max_position_embeddings", "max_encoder_position_embeddings"]
    if not getattr(text, "is_encoder_decoder", False):  # there it is T5's relic, which relatives of T5 have copied
        names.append("n_positions")
    # In this order: GPT-2 answers to both names, LED has two tables.
    limit = next((int(value) for name in names if (value := getattr(text, name, None))), None)
    if limit is None or limit <= 0:
        return None
    if text.model_type in _COUNT_FROM_PADDING:
        return limit - int(text.pad_token_id) - 1
    return limit
