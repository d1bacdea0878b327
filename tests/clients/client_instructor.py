"""instructor in its three modes: tools, JSON, JSON schema; a nested model, and a list.

python client_instructor.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import instructor
import openai
from pydantic import BaseModel, Field


class Part(BaseModel):
    kind: Literal["plot", "music"]


class Review(BaseModel):
    """A review of a film."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]
    parts: Annotated[list[Part], Field(max_length=2)]


def main(base_url: str, model: str) -> None:
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "Review: a fine film."}]
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        wrapped = instructor.from_openai(client, mode=mode)
        found = wrapped.chat.completions.create(
            model=model, response_model=Review, messages=messages, max_tokens=120, max_retries=1
        )
        assert isinstance(found, Review), mode
    # JSON mode promises an object and not which: an untuned model seldom writes the right one, so a model that allows any.

    class Anything(BaseModel):
        model_config = {"extra": "allow"}

    wrapped = instructor.from_openai(client, mode=instructor.Mode.JSON)
    for seed in range(20):  # an untuned model may also run out of tokens before its object ends
        try:
            found = wrapped.chat.completions.create(
                model=model, response_model=Anything, messages=messages, max_tokens=200, max_retries=1, seed=seed
            )
        except Exception as error:  # of the kinds that instructor has for an answer that was cut short
            assert "IncompleteOutput" in repr(error) or "max_tokens" in str(error), repr(error)
            continue
        assert isinstance(found, Anything)
        break
    else:
        raise AssertionError("20 objects were cut short")


if __name__ == "__main__":
    main(*sys.argv[1:3])
