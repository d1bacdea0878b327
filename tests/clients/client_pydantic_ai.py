"""pydantic-ai: chats, streams, typed results by a tool and by a schema, an agent with a tool and a typed result, errors.

python client_pydantic_ai.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResult, ModelHTTPError, NativeOutput, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Review(BaseModel):
    """A review of a film."""

    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def weather(town: Literal["Paris", "Rome"]) -> str:
    """The weather of a town."""
    return f"sunny in {town}"


def with_tool(model: OpenAIChatModel, output: Any) -> AgentRunResult[Any]:
    """A run of an agent that may call before it answers.

    An untuned model chooses by chance, and may call until no room is left.
    """
    for seed in range(20):
        drawn: Any = {"max_tokens": 60, "temperature": 1.5, "seed": seed}
        agent = Agent(model, output_type=output, tools=[weather], model_settings=drawn)
        try:
            return agent.run_sync("A fine film?", usage_limits=UsageLimits(request_limit=4))
        except (UsageLimitExceeded, ModelHTTPError) as error:
            assert isinstance(error, UsageLimitExceeded) or "maximum context length" in str(error), error
    raise AssertionError("20 agents did not answer")


async def streamed(agent: Agent[None, Any]) -> Any:
    async with agent.run_stream("Was it a fine film?") as stream:
        return await stream.get_output()


def main(base_url: str, name: str) -> None:
    provider = OpenAIProvider(base_url=base_url, api_key="none")
    model = OpenAIChatModel(name, provider=provider)
    greedy: Any = {"max_tokens": 60, "temperature": 0.0}
    brief = Agent(model, instructions="Be brief.", model_settings=greedy)
    assert brief.run_sync("Was it a fine film?").output == asyncio.run(streamed(brief))
    for output in (Review, NativeOutput(Review)):
        typed: Agent[None, Any] = Agent(model, output_type=output, model_settings=greedy)
        assert isinstance(typed.run_sync("A fine film?").output, Review), output
        assert isinstance(asyncio.run(streamed(typed)), Review), output
        found = with_tool(model, output)
        assert isinstance(found.output, Review), output
        later = Agent(model, tools=[weather], model_settings=greedy)
        assert later.run_sync("And then?", message_history=found.all_messages()).output
    for agent, text, status in (
        (Agent(OpenAIChatModel("other", provider=provider)), "A fine film?", 404),
        (Agent(model), "A fine film? " * 2000, 400),
    ):
        try:
            agent.run_sync(text)
        except ModelHTTPError as error:
            assert error.status_code == status, error
        else:
            raise AssertionError(f"no error {status}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
