"""Log-probabilities in OpenAI's two shapes: one for completions, one for chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollartune.serve.sequence import Scored

LOWEST = -9999.0
"""What stands for minus infinity, which JSON has not; OpenAI's own number."""


def token_text(tokenizer: Any, token: int) -> str:
    """A token's text, with the space that it begins with; by itself `decode` loses a SentencePiece token's space."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if isinstance(piece, str) and "\u2581" in piece:
        return piece.replace("\u2581", " ")
    return str(tokenizer.decode([token]))


def completion_logprobs(tokenizer: Any, records: Sequence[Scored], offset: int = 0) -> dict[str, object]:
    """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`, a place each per token.

    Args:
        offset: characters before the first of these tokens.
    """
    texts = [token_text(tokenizer, record.token) for record in records]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for text, record in zip(texts, records, strict=True):
        if record.logprob is None:  # nothing comes before the first token of a prompt
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, value in record.top:
            top.setdefault(token_text(tokenizer, token), max(value, LOWEST))  # of equal texts, the likelier
        top.setdefault(text, max(record.logprob, LOWEST))
        tops.append(top)
    values = [None if record.logprob is None else max(record.logprob, LOWEST) for record in records]
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def chat_logprobs(tokenizer: Any, records: Sequence[Scored]) -> dict[str, object]:
    """`content`: for each token its text, bytes, log-probability and the likeliest beside it."""

    def entry(token: int, value: float) -> dict[str, object]:
        text = token_text(tokenizer, token)
        return {"token": text, "logprob": max(value, LOWEST), "bytes": list(text.encode("utf8", "replace"))}

    content = [
        {**entry(record.token, record.logprob or 0.0), "top_logprobs": [entry(*one) for one in record.top]}
        for record in records
    ]
    return {"content": content, "refusal": None}
