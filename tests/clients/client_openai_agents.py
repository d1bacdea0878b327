"""openai-agents by its model for chat completions: runs, streams, typed results, tools, several turns.

python client_openai_agents.py http://127.0.0.1:8000/v1 MODEL
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, BadRequestError
from pydantic import BaseModel


class Review(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


@function_tool
def weather(town: Literal["Paris", "Rome"]) -> str:
    """The weather of a town."""
    return f"sunny in {town}"


async def conversation(base_url: str, name: str) -> None:
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    model = OpenAIChatCompletionsModel(model=name, openai_client=client)

    def agent(*, seed: int = 1, output: Any = None, tools: Any = (), **more: Any) -> Agent[None]:
        settings = ModelSettings(max_tokens=60, extra_body={"seed": seed}, include_usage=True, **more)
        return Agent(
            name="critic",
            instructions="Be brief.",
            model=model,
            model_settings=settings,
            output_type=output,
            tools=[*tools],
        )

    said = await Runner.run(agent(temperature=0), "Was it a fine film?")
    stream = Runner.run_streamed(agent(temperature=0), "Was it a fine film?")
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == said.final_output
    again: Any = [
        *said.to_input_list(),
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Why?"},
    ]
    assert isinstance((await Runner.run(agent(temperature=0), again)).final_output, str)
    assert isinstance((await Runner.run(agent(output=Review), "A fine film?")).final_output, Review)
    # The first turn must call; in the second one the model may.
    for choice in ("required", "weather"):
        called = await Runner.run(agent(tools=[weather], tool_choice=choice, temperature=0), "Rome?", max_turns=10)
        assert any("sunny in" in str(item) for item in called.to_input_list()), choice
    # An untuned model calls or answers by chance, and may call until no room is left.
    for seed in range(20):
        try:
            both = await Runner.run(
                agent(seed=seed, output=Review, tools=[weather], temperature=1.5), "Fine?", max_turns=4
            )
        except (MaxTurnsExceeded, BadRequestError) as error:
            assert isinstance(error, MaxTurnsExceeded) or error.code == "context_length_exceeded", error
            continue
        assert isinstance(both.final_output, Review)
        break
    else:
        raise AssertionError("20 agents did not answer")
    await client.close()


def main(base_url: str, name: str) -> None:
    set_tracing_disabled(True)  # traces would go to OpenAI
    asyncio.run(conversation(base_url, name))


if __name__ == "__main__":
    main(*sys.argv[1:3])
