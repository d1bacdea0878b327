"""What requests may hold: OpenAI's fields, as far as they mean something here; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dollartune.serve.fields import CHAT, COMPLETION, Neutral, without_neutral

ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=300)
]  # a hub id has up to 96 on either side of its slash
StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Request(BaseModel):
    # A misspelt setting that is silently ignored gives answers that nobody asked for: unknown names are refused.
    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelName
    """An adapter's name, or the backbone's for the bare backbone."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None
    """OpenAI pads its events against eavesdroppers; true is refused, since it is not done here."""


class GenerationRequest(Request):
    neutral: ClassVar[Mapping[str, Neutral]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        return without_neutral(data, cls, cls.neutral)

    temperature: float | None = Field(None, ge=0.0, le=2.0)
    """1 where it is not given, as OpenAI's; 0 on encoder-decoders, which are greedy here."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    # JSON numbers above 2^53 lose digits in JavaScript clients: the same seed would be another.
    seed: int | None = Field(None, ge=-(2**53), le=2**53)
    # Four is OpenAI's limit; each stop text is searched at every token.
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=64)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=1024)] | None = None
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    min_tokens: int = Field(0, ge=0)
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool = False


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = COMPLETION

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, texts, token ids, or rows of token ids."""
    # OpenAI's default of the completions endpoint.
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    # OpenAI's largest.
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, le=64)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    # What an answer carries that a client gives back; with a value it asks for what the template is not given here.
    refusal: str | None = None
    annotations: list[None] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """Its content as one text; a refusal is what an assistant said in its place."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content if self.content is not None else self.refusal or ""


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = CHAT

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """`max_tokens` by its newer name; without either, as many as fit."""
    logprobs: bool = False
    # OpenAI's largest.
    top_logprobs: int | None = Field(None, ge=0, le=20)


class ClassifyRequest(Request):
    """`POST /v1/classify`: rows of the columns that the adapter's prompt names, or the text itself where there is one column."""

    input: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]


class TokenizeRequest(Request):
    """`POST /tokenize`."""

    prompt: str
    add_special_tokens: bool = True


class DetokenizeRequest(Request):
    """`POST /detokenize`."""

    tokens: list[int]


class AdapterRequest(BaseModel):
    """`POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=200)
    folder: str = Field(max_length=500)
    """A folder inside the server's adapter root."""
    replace: bool = False
    """Take the name from the adapter that has it; requests that run finish with that one."""
