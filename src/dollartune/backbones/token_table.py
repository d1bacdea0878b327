"""The two ends of a model that know its vocabulary: the table of token embeddings, and the head that gives logits."""

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


def output_head(model: Any) -> nn.Module | None:
    """The module that makes logits of the vocabulary from states; None where a model has none."""
    getter = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = None if getter is None else getter()
    if not isinstance(head, nn.Embedding):
        return head
    # FSMT names a table there; what multiplies states with its weights, or with others of that shape, is a linear of its own
    shape = head.weight.shape
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and (m.out_features, m.in_features) == shape]
    return linears[-1] if linears else None
