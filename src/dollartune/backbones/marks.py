"""Marks of a model's vocabulary: where an answer starts, and which ids are no words."""

from __future__ import annotations

from typing import Any


def decoder_start(model: Any) -> int:
    """The token that an encoder-decoder's answers start from, as transformers' `generate` finds it: its start token, else the
    beginning mark (T5Gemma has no other), else padding.

    Training, scoring, generation and serving all start from it.
    """
    for settings in (model.config, getattr(model, "generation_config", None)):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    inner = getattr(model.config, "decoder", None)
    for name in ("bos_token_id", "pad_token_id"):
        for settings in (model.config, inner):
            token = getattr(settings, name, None)
            if isinstance(token, int):
                return token
    return 0


def special_ids(config: Any) -> set[int]:
    """Ids that a configuration calls marks; several may end a text (Llama 3, GLM)."""
    special: set[int] = set()
    for name in ("pad", "bos", "eos", "decoder_start"):
        token = getattr(config, f"{name}_token_id", None)
        special |= {int(one) for one in (token if isinstance(token, list | tuple) else [token]) if one is not None}
    return special
