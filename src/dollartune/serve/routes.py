"""What the server answers at which address; the shapes are OpenAI's where it has the address."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from dollartune.serve.limits import Refused
from dollartune.serve.metrics import ServerMetrics
from dollartune.serve.prompts import Chat, Prompt
from dollartune.serve.response import identifier
from dollartune.serve.schema import (
    AdapterRequest,
    ChatMessage,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    GenerationRequest,
    LoadLoraRequest,
    TokenizeRequest,
    Tool,
    UnloadLoraRequest,
)
from dollartune.serve.sequence import Sampling
from dollartune.serve.streaming import answer, while_connected
from dollartune.serve.tools import ToolUse, tool_use

if TYPE_CHECKING:
    from dollartune.serve.service import Service

STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""Answers of one piece are JSON, streams are events."""


def health_address(service: Service) -> APIRouter:
    """`/health`, the one address without a key."""
    router = APIRouter()

    # Load balancers ask with HEAD, which FastAPI does not answer by itself.
    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    return router


def metrics_address(metrics: ServerMetrics) -> APIRouter:
    """`/metrics`, as Prometheus reads it."""
    router = APIRouter()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.text())

    return router


def adapter_addresses(service: Service) -> APIRouter:
    """What is served, and how that changes while the server runs."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [model_facts(service, name) for name in service.pool.names()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, object]:
        name = name.rstrip("/")
        if not name:  # the list's address with a slash at its end, which leads here and not there
            return await models()
        # Held for a moment: the same look-up, and the same error, as a request that uses the adapter.
        service.pool.release(service.hold(name))
        return model_facts(service, name)

    @router.post("/v1/adapters", status_code=201)
    async def add_adapter(body: AdapterRequest) -> dict[str, object]:
        served = await service.add(body.name, body.folder, body.replace)
        return model_facts(service, served.name)

    @router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load_lora_adapter(body: LoadLoraRequest) -> PlainTextResponse:
        await service.add(body.lora_name, body.lora_path, body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload_lora_adapter(body: UnloadLoraRequest) -> PlainTextResponse:
        service.remove(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    @router.delete("/v1/adapters/{name}")
    async def remove_adapter(name: str) -> dict[str, object]:
        service.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    return router


def task_addresses(service: Service) -> APIRouter:
    """Text after a prompt, and labels with their probabilities."""
    router = APIRouter()

    @router.post("/v1/classify")
    async def classify(body: ClassifyRequest, request: Request) -> dict[str, object]:
        rows = body.input if isinstance(body.input, list) else [body.input]
        labels, probabilities = await while_connected(request, service.classify(body.model, rows))
        data = [
            {"index": index, "label": label, "probabilities": own}
            for index, (label, own) in enumerate(zip(labels, probabilities, strict=True))
        ]
        head = {"id": identifier("classify"), "object": "list", "created": int(time.time()), "model": body.model}
        return {**head, "data": data}

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, object]:
        inputs: list[Any] = list(body.input) if _several(body.input) else [body.input]
        vectors, tokens = await while_connected(request, service.embed(body.model, inputs))
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    @router.post("/v1/completions", response_model=None, responses=STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        service.check_writes()
        prompts: list[Prompt] = list(body.prompt) if _several(body.prompt) else [body.prompt]  # type: ignore[list-item, arg-type]
        chosen = sampling_of(body, body.max_tokens)
        best = body.best_of is not None and body.best_of > body.n
        # The best is told by log-probabilities, recorded then though nobody asked to see them.
        chosen = replace(chosen, echo=body.echo, logprobs=0 if best and body.logprobs is None else body.logprobs)
        if body.best_of is not None and body.best_of < body.n:
            raise Refused(400, f"best_of {body.best_of} is below n {body.n}", param="best_of")
        if best and body.stream:
            raise Refused(400, "best_of above n cannot stream: the best is known at the end", param="best_of")
        if body.max_tokens == 0 and not body.echo:
            raise Refused(400, "max_tokens 0 writes nothing; it is for echo", param="max_tokens")
        chosen = await in_format(service, body, chosen)
        return await answer(service, body, prompts, chosen, request)

    @router.post("/v1/chat/completions", response_model=None, responses=STREAMS)
    async def chat(body: ChatRequest, request: Request) -> Any:
        service.check_writes()
        if body.top_logprobs is not None and not body.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        wanted = body.max_completion_tokens or body.max_tokens or -1
        if body.max_completion_tokens:
            service.check_length("max_completion_tokens", wanted)
        chosen = sampling_of(body, wanted)
        chosen = replace(chosen, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        use = tool_use(body, bool(body.tools) and service.takes_tools(body.model))
        chosen = await in_format(service, body, chosen, use)
        conversation = chat_of(body.messages, (body.tools or ()) if use is not None else ())
        return await answer(service, body, [conversation], chosen, request, use)

    return router


def token_addresses(service: Service) -> APIRouter:
    """Tokens of a text and back, as vLLM has them, and which version answers."""
    router = APIRouter()

    @router.get("/version")
    async def version() -> dict[str, str]:
        from dollartune.export.directory import versions

        return {"version": versions()["dollartune"]}

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, object]:
        reader, served = service.prompts, service.hold(body.model or service.pool.base_name)
        try:  # beside the event loop: a megabyte of text takes seconds, in which no stream could send its tokens
            if body.messages is not None:
                conversation = chat_of(body.messages, body.tools or ())
                tokens = list(await asyncio.to_thread(reader.ids, conversation, served, 0, "messages"))
            else:
                tokens = await asyncio.to_thread(reader.tokenize, body.prompt or "", body.add_special_tokens)
        finally:
            service.pool.release(served)
        found = {"tokens": tokens, "count": len(tokens), "max_model_len": reader.places}
        return {**found, "token_strs": reader.pieces(tokens)} if body.return_token_strs else found

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return service.prompts.tokenizer_info()

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        service.pool.release(service.hold(body.model or service.pool.base_name))
        return {"prompt": service.prompts.detokenize(body.tokens)}

    return router


def chat_of(messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> Chat:
    """A conversation, with tools where some are in it."""
    turns = tuple(message.turn for message in messages)
    if not tools and not any(message.uses_tools for message in messages):
        return Chat(turns)
    shown = tuple(tool.model_dump(exclude_none=True) for tool in tools)
    return Chat(turns, tuple(message.for_template() for message in messages), shown)


async def in_format(
    service: Service, body: GenerationRequest, chosen: Sampling, use: ToolUse | None = None
) -> Sampling:
    """A request's settings with the grammar that its answer must follow, if any.

    Raises:
        Refused: a schema that cannot be followed, or settings that contradict it.
    """
    wanted = body.response_format.wanted if body.response_format is not None else None
    schema: Mapping[str, Any] | None = wanted
    param = "response_format"
    if use is not None:  # a call that is demanded leaves no text to be in a format
        schema, param = use.schema, "tools"
        if schema is None and wanted is not None:
            await asyncio.to_thread(
                service.grammars.json, wanted
            )  # alone first: an error in it is not one of the tools
            schema = use.or_answer(wanted)
    if schema is None:
        return chosen
    for name, given in {"min_tokens": chosen.min_tokens > 0, "ignore_eos": chosen.ignore_end}.items():
        if given:
            raise Refused(400, f"{name}: where an answer has a format, that decides where it ends", param=name)
    # Beside the event loop: a large schema takes a second.
    return replace(chosen, grammar=await asyncio.to_thread(service.grammars.json, schema, param))


def _encoded(vector: list[float], form: str) -> Any:
    """Numbers, or fp32 in base64, as OpenAI's client asks for by itself."""
    return vector if form == "float" else base64.b64encode(array("f", vector).tobytes()).decode()


def _several(prompt: Any) -> bool:
    """Whether a completion's prompt is a list of prompts, and not one text or one row of token ids."""
    return isinstance(prompt, list) and not isinstance(prompt[0], int)


def model_facts(service: Service, name: str) -> dict[str, object]:
    """One entry of /v1/models."""
    served = service.pool.get(name)
    facts: dict[str, object] = {"id": name, "object": "model", "created": service.started, "owned_by": "dollartune"}
    if service.writes:  # vLLM's name, by which clients know how long a prompt may be
        facts["max_model_len"] = service.prompts.room(served)
    if served is not None:
        facts |= {
            "created": served.created,
            "parent": service.pool.base_name,
            "methods": [method.name for method in served.adapter.methods],
            "task": (served.info.get("task") or {}).get("name"),
        }
    return facts


def sampling_of(body: GenerationRequest, max_tokens: int) -> Sampling:
    """A request's settings."""
    given = (body.logit_bias or {}).items()
    # Each token in one way only: as `int` reads them, "5", "05" and " 5 " would be one token with three biases.
    if not all(token == "0" or re.fullmatch("[1-9][0-9]{0,9}", token) for token, _ in given):
        raise Refused(400, "logit_bias: its keys are token ids, written as texts", param="logit_bias")
    bias = tuple((int(token), value) for token, value in given)
    return Sampling(
        temperature=body.temperature if body.temperature is not None else 1.0,
        top_p=body.top_p,
        seed=body.seed,
        max_tokens=max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=bias,
        stop_tokens=frozenset(body.stop_token_ids or ()),
        ignore_end=body.ignore_eos,
        min_tokens=body.min_tokens,
    )
