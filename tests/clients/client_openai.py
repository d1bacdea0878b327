"""OpenAI's own client: completions, chats, streams, log-probabilities, formats, tools, embeddings' refusal, tokens.

python client_openai.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import sys
from typing import Literal

import openai
from pydantic import BaseModel

SAY = [{"role": "user", "content": "Was it a fine film?"}]


class Review(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}


def main(base_url: str, model: str) -> None:
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    assert model in {one.id for one in client.models.list()}
    assert client.models.retrieve(model).id == model
    whole = client.completions.create(model=model, prompt="A fine film", max_tokens=8, temperature=0)
    pieces = client.completions.create(model=model, prompt="A fine film", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    scored = client.completions.create(model=model, prompt="A fine film", max_tokens=2, logprobs=2, echo=True)
    assert scored.choices[0].logprobs is not None
    assert len(scored.choices[0].logprobs.tokens) >= 4
    chat = client.chat.completions.create(
        model=model, messages=SAY, max_completion_tokens=6, logprobs=True, top_logprobs=2, n=2, seed=1
    )
    assert len(chat.choices) == 2
    events = client.chat.completions.create(
        model=model, messages=SAY, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert [event.usage for event in events][-1] is not None
    with client.chat.completions.stream(model=model, messages=SAY, response_format=Review, max_tokens=60) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Review)
    parsed = client.chat.completions.parse(model=model, messages=SAY, response_format=Review, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Review)
    called = client.chat.completions.create(
        model=model, messages=SAY, tools=[TOOL], max_tokens=60,
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )  # fmt: skip
    message = called.choices[0].message
    assert message.tool_calls[0].function.name == "weather"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    again = client.chat.completions.create(
        model=model, messages=[*SAY, message, result], tools=[TOOL], tool_choice="none", max_tokens=4
    )
    assert again.choices[0].finish_reason in ("stop", "length")
    for fields in ({"tools": [TOOL], "tool_choice": "required"}, {"response_format": {"type": "json_object"}}):
        client.chat.completions.create(model=model, messages=SAY, max_tokens=40, **fields)
    vector = client.embeddings.create(model=model, input=["a fine film", "a dull one"]).data[0].embedding
    assert abs(sum(value * value for value in vector) - 1) < 1e-3
    try:
        client.chat.completions.create(model=model, messages=SAY, extra_body={"temperatur": 1})
    except openai.BadRequestError as error:
        assert error.param == "temperatur"
    else:
        raise AssertionError("a misspelt field was taken")


if __name__ == "__main__":
    main(*sys.argv[1:3])
