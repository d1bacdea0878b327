"""What requests may hold: OpenAI's fields, as far as they mean something here; anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dollartune.serve.fields import CHAT, COMPLETION, EMBEDDING, TOKENS, Neutral, without_neutral, without_nulls
from dollartune.serve.limits import Refused

ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=300)
]  # a hub id has up to 96 on either side of its slash
StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Body(BaseModel):
    """A request's body, or an object in one."""

    # A misspelt setting that is silently ignored gives answers that nobody asked for: unknown names are refused.
    model_config = ConfigDict(extra="forbid", strict=True)

    notes: ClassVar[frozenset[str]] = frozenset()
    """What clients write here for themselves or for other services: taken, and nothing depends on it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return without_nulls(data, cls, cls.notes)


class RequestBody(Body):
    """What an address is sent; fields that ask for nothing are as if they were not there, and others are known by name."""

    neutral: ClassVar[Mapping[str, Neutral]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        return without_neutral(data, cls, cls.neutral)


class Request(RequestBody):
    model: ModelName
    """An adapter's name, or the backbone's for the bare backbone."""


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None
    """OpenAI pads its events against eavesdroppers; true is refused, since it is not done here."""


class JsonSchema(Body):
    name: str = Field(max_length=200)
    description: str | None = None
    # `schema` by its name would hide a method of the class.
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Answers follow the schema in any case."""


class AnswerFormat(Body):
    """`response_format`: any text, any JSON object, or JSON that a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> AnswerFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and with no other")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema that an answer must follow, if any."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class GenerationRequest(Request):
    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options goes with stream: true", param="stream_options")
        return self

    temperature: float | None = Field(None, ge=0.0, le=2.0)
    """1 where it is not given, as OpenAI's."""
    top_p: float = Field(1.0, ge=0.0, le=1.0)
    """At 0 the likeliest token is the next one."""
    # JSON numbers above 2^53 lose digits in JavaScript clients: the same seed would be another.
    seed: int | None = Field(None, ge=-(2**53), le=2**53)
    # Four is OpenAI's limit; each stop text is searched at every token.
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=64)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10.0)
    # OpenAI's range, at whose ends a token is forced or forbidden.
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=1024)] | None = None
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    min_tokens: int = Field(0, ge=0)
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    response_format: AnswerFormat | None = None


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


class TextPart(Body):
    notes: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "prompt_cache_breakpoint"})

    type: Literal["text", "input_text", "output_text"]
    text: str


class CalledFunction(Body):
    # What OpenAI's client has read from the text beside it, in a message that it parsed.
    notes: ClassVar[frozenset[str]] = frozenset({"parsed_arguments"})

    name: str
    arguments: str = ""
    """JSON, as a model wrote it."""


class GivenCall(Body):
    """A call that an assistant's earlier turn made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ToolFunction(Body):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments; without one it has none."""
    strict: bool | None = None
    """Arguments of a forced call follow the schema in any case."""


class Tool(Body):
    notes: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["function"]
    function: ToolFunction


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class ToolChoices(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedTools(Body):
    """Of the tools that a model is shown, those that this answer may call."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolChoices


class ChatMessage(Body):
    # Of answers that clients give back: what they have read from the content, and thoughts of other servers' models, which
    # templates leave out of earlier turns.
    notes: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "parsed", "provider_specific_fields", "reasoning", "reasoning_content", "thinking_blocks"}
    )

    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    # What an answer carries that a client gives back; with a value it asks for what the template is not given here.
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[GivenCall], Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        """Its content as one text; a refusal, or the calls of tools, are what an assistant said in its place."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        if self.content is None and self.tool_calls:
            return "\n".join(call.function.arguments for call in self.tool_calls)
        return self.content if self.content is not None else self.refusal or ""

    @property
    def turn(self) -> tuple[str, str]:
        """As `backbones.chat.Turn`, in which what a tool says is a message of its own."""
        return self.role, json.dumps(self.for_template(), ensure_ascii=False) if self.role == "tool" else self.text

    @property
    def uses_tools(self) -> bool:
        """Whether a template must know tools to write it in full."""
        return self.role == "tool" or bool(self.tool_calls)

    def for_template(self) -> dict[str, Any]:
        """As chat templates read messages: arguments of calls are objects, not texts."""
        said: dict[str, Any] = {"role": self.role, "content": "" if self.tool_calls and not self.content else self.text}
        if self.tool_calls:
            said["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _read(call)}}
                for call in self.tool_calls
            ]
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        return said | {name: value for name, value in more.items() if value is not None}


def _read(call: GivenCall) -> Any:
    try:
        return json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):  # cut short when it was written: a template shows it as it is
        return call.function.arguments


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
    # OpenAI's largest.
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    """False: of several calls only the first is answered."""


class ClassifyRequest(Request):
    """`POST /v1/classify`: rows of the columns that the adapter's prompt names, or the text itself where there is one column."""

    input: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`."""

    neutral: ClassVar[Mapping[str, Neutral]] = EMBEDDING

    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, texts, token ids, or rows of token ids."""
    encoding_format: Literal["float", "base64"] = "float"


class TokensRequest(RequestBody):
    model: ModelName | None = None
    """All models of a server have one tokenizer, so that it may be left out, as vLLM's clients do."""


class TokenizeRequest(TokensRequest):
    """`POST /tokenize`."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOKENS

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)] | None = None
    """A chat in place of a prompt: its tokens up to the next answer, by the model's template."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    """What the chat's template shows the model beside the messages."""
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages, one of them")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages")
        return self


class DetokenizeRequest(TokensRequest):
    """`POST /detokenize`."""

    tokens: list[int]


class AdapterRequest(Body):
    """`POST /v1/adapters`."""

    name: str = Field(max_length=200)
    folder: str = Field(max_length=500)
    """A folder inside the server's adapter root."""
    replace: bool = False
    """Take the name from the adapter that has it; requests that run finish with that one."""


class LoadLoraRequest(Body):
    """`POST /v1/load_lora_adapter`, vLLM's name for adding an adapter; here any method's, and peft's folders too."""

    lora_name: str = Field(max_length=200)
    lora_path: str = Field(max_length=500)
    """A folder inside the server's adapter root, absolute or counted from there."""
    load_inplace: bool = False
    """Take the name from the adapter that has it."""


class UnloadLoraRequest(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str = Field(max_length=200)
    lora_int_id: int | None = None
    """vLLM's number of an adapter; the name says which it is."""
