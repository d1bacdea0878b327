"""What requests may hold: OpenAI's fields, as far as they mean something here; anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=96)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelName
    """An adapter's name, or the backbone's for the bare backbone."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(Request):
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**53), le=2**53)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=1)
    user: str | None = None
    """Taken and not used."""


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    max_tokens: int = Field(16, ge=1)
    echo: bool = False


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "developer"]
    content: str
    name: str | None = None


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
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
