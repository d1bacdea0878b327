"""dspy: its language model by chats, completions and a schema, embeddings, a prompt that is too long.

python client_dspy.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import dspy
from pydantic import BaseModel


class Review(BaseModel):
    """A review of a film."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def main(base_url: str, model: str) -> None:
    name = f"openai/{model}"
    common: dict[str, Any] = {"api_base": base_url, "api_key": "none"}
    language_model = dspy.LM(name, max_tokens=60, temperature=0.0, cache=False, num_retries=0, **common)
    assert language_model("Was it a fine film?") == language_model(
        messages=[{"role": "user", "content": "Was it a fine film?"}]
    )
    text = dspy.LM(name, model_type="text", max_tokens=8, cache=False, num_retries=0, **common)
    assert isinstance(text("A fine film")[0], str)
    # An untuned model fills in none of dspy's forms; by a schema it must.
    Review.model_validate_json(language_model("A fine film?", response_format=Review)[0])
    assert dspy.Embedder(name, caching=False, **common)(["a fine film", "a dull one"]).shape[0] == 2
    try:
        language_model("A fine film. " * 2000)
    except dspy.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a prompt of 10,000 tokens was taken")


if __name__ == "__main__":
    main(*sys.argv[1:3])
