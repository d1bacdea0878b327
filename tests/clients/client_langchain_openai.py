"""langchain-openai: chats, completions, streams, structured output in each of its ways, tools.

python client_langchain_openai.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Review(BaseModel):
    """A review of a film."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


@tool
def weather(town: Literal["Paris", "Rome"]) -> str:
    """The weather of a town."""
    return town


def main(base_url: str, model: str) -> None:
    chat = ChatOpenAI(base_url=base_url, api_key="none", model=model, max_tokens=60, temperature=0, max_retries=0)
    messages = [SystemMessage("Be brief."), HumanMessage("Was it a fine film?")]
    said = chat.invoke(messages)
    assert said.content == "".join(str(piece.content) for piece in chat.stream(messages))
    assert len(chat.batch([messages, messages])) == 2
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Review, method=method).invoke("A fine film?")
        assert isinstance(found, Review), method
    called = chat.bind_tools([weather], tool_choice="weather").invoke("Rome?")
    assert called.tool_calls[0]["name"] == "weather"
    assert called.tool_calls[0]["args"]["town"] in ("Paris", "Rome")
    any_tool = chat.bind_tools([weather], tool_choice="any").invoke("Rome?")
    assert any_tool.tool_calls[0]["name"] == "weather"
    complete = OpenAI(base_url=base_url, api_key="none", model=model, max_tokens=6, temperature=0, max_retries=0)
    assert complete.invoke("A fine film") == "".join(complete.stream("A fine film"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
