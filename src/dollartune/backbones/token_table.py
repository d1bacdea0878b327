"""The table of a model's token embeddings, and how many tokens there are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_CHARACTERS = 0x110000
"""Of Unicode: what a model without a table reads."""


def token_table(model: Any) -> nn.Module | None:
    """The module that turns token ids into embeddings; None where there is none (CANINE hashes characters into several)."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return table if isinstance(getattr(table, "weight", None), Tensor) else None


def vocabulary_size(model: Any) -> int:
    """Token ids end below it."""
    table: Any = token_table(model)
    if table is None:
        return int(getattr(model.config, "vocab_size", None) or _CHARACTERS)
    return int(getattr(table, "num_embeddings", 0) or table.weight.shape[0])
