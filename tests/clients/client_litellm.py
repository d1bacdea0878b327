"""litellm under its three names for such a server: openai/, hosted_vllm/, text-completion-openai/.

python client_litellm.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import json
import sys

import litellm

SAY = [{"role": "user", "content": "Was it a fine film?"}]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def main(base_url: str, model: str) -> None:
    common = {"api_base": base_url, "api_key": "none", "max_tokens": 40, "temperature": 0, "num_retries": 0}
    wanted = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}
    tool = {"type": "function", "function": {"name": "review", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "review"}}
    for provider in ("openai", "hosted_vllm"):
        name = f"{provider}/{model}"
        whole = litellm.completion(model=name, messages=SAY, **common).choices[0].message.content
        pieces = litellm.completion(model=name, messages=SAY, stream=True, **common)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole, provider
        answer = litellm.completion(model=name, messages=SAY, response_format=wanted, **common)
        assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad"), provider
        called = litellm.completion(model=name, messages=SAY, tools=[tool], tool_choice=choice, **common)
        assert called.choices[0].message.tool_calls[0].function.name == "review", provider
    text = litellm.text_completion(model=f"text-completion-openai/{model}", prompt="A fine film", **common)
    assert isinstance(text.choices[0].text, str)
    vector = litellm.embedding(model=f"openai/{model}", input=["a fine film"], api_base=base_url, api_key="none")
    assert len(vector.data[0]["embedding"]) > 8


if __name__ == "__main__":
    main(*sys.argv[1:3])
