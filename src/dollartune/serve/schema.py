"""What requests may hold: OpenAI's fields, as far as they mean something here; anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=96)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Request(BaseModel):
    # A misspelt setting that is silently ignored gives answers that nobody asked for: unknown names are refused.
    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelName
    """An adapter's name, or the backbone's for the bare backbone."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(Request):
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    # JSON numbers above 2^53 lose digits in JavaScript clients: the same seed would be another.
    seed: int | None = Field(None, ge=-(2**53), le=2**53)
    # Four is OpenAI's limit; each stop text is searched at every token.
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Accepted, as clients send it by default; several choices are several prompts here.
    n: int = Field(1, ge=1, le=1)
    user: str | None = None
    """Accepted for compatibility, ignored."""


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    # OpenAI's default of the completions endpoint.
    max_tokens: int = Field(16, ge=1)
    echo: bool = False


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "developer"]
    content: str
    name: str | None = None


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class ClassifyRequest(Request):
    """`POST /v1/classify`: rows of the columns that the adapter's prompt names, or the text itself where there is one column."""

    input: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]


class AdapterRequest(BaseModel):
    """`POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=200)
    folder: str = Field(max_length=500)
    """A folder inside the server's adapter root."""
    replace: bool = False
    """Take the name from the adapter that has it; requests that run finish with that one."""
