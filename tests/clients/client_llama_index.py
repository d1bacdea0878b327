"""llama-index by OpenAILike: chats, completions, streams, typed results, tools and their results, an agent, embeddings.

python client_llama_index.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import sys
from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Review(BaseModel):
    """A review of a film."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


class Town(BaseModel):
    town: Literal["Paris", "Rome"]


def weather(town: str) -> str:
    """The weather of a town."""
    return f"sunny in {town}"


def main(base_url: str, model: str) -> None:
    common: dict[str, Any] = {"api_base": base_url, "api_key": "none", "max_retries": 0}

    def client(**more: Any) -> OpenAILike:
        settings = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 60, "temperature": 0.0}
        return OpenAILike(model=model, context_window=512, **common, **settings | more)

    asked = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Was it a fine film?")]
    said = client().chat(asked).message.content
    assert said == "".join(piece.delta or "" for piece in client().stream_chat(asked))
    plain = client(is_chat_model=False)
    assert plain.complete("A fine film").text == "".join(piece.delta for piece in plain.stream_complete("A fine film"))
    for by_schema in (False, True):
        typed = client(should_use_structured_outputs=by_schema).as_structured_llm(Review)
        assert isinstance(typed.complete("A fine film?").raw, Review), by_schema
        # By tools, it lets the model choose in a stream, and an untuned one chooses to write.
        assert not by_schema or isinstance([*typed.stream_chat(asked)][-1].raw, Review)
    tool = FunctionTool.from_defaults(weather, fn_schema=Town)
    called = client().chat_with_tools([tool], "Rome?", tool_required=True)
    (call,) = client().get_tool_calls_from_response(called)
    assert call.tool_kwargs["town"] in ("Paris", "Rome")
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
    assert client().chat_with_tools([tool], chat_history=[*asked, called.message, result]).message.role == "assistant"
    embedding = OpenAILikeEmbedding(model_name=model, **common)
    vectors = embedding.get_text_embedding_batch(["a fine film", "a dull one"])
    assert len(vectors) == 2
    assert abs(sum(value * value for value in vectors[0]) - 1) < 1e-3


if __name__ == "__main__":
    main(*sys.argv[1:3])
