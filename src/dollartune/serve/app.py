"""The addresses of the server, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from dollartune.serve.gate import Gate
from dollartune.serve.limits import Refused
from dollartune.serve.measures import Measures
from dollartune.serve.schema import AdapterRequest, ChatRequest, ClassifyRequest, CompletionRequest, GenerationRequest
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for code, text in {
        400: "Something in the request is not possible.",
        401: "No API key, or a wrong one.",
        403: "Not allowed on this server.",
        404: "No such model.",
        405: "No such method.",
        408: "The body took too long to arrive.",
        409: "The name is taken.",
        413: "The body is too large.",
        422: "Malformed.",
        429: "The queue is full.",
        500: "The server failed.",
        503: "The server is stopping.",
        504: "It took too long.",
    }.items()
}


STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""Answers of one piece are JSON, streams are events."""


def create_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        service: backbone, adapters and engine; the engine is started and stopped with the application.
        api_key: what `Authorization: Bearer` must hold for every address but /health; None lets everyone in.
    """
    measures = Measures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.stop)

    app = FastAPI(title="DollarTune", version="1", lifespan=lifespan, responses=ERRORS)
    app.add_middleware(Gate, limits=service.limits, measures=measures)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.message, error.kind)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return problem(422, f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    def authorized(request: Request) -> None:
        if api_key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
                raise Refused(401, "no API key, or a wrong one: send Authorization: Bearer KEY", "authentication_error")

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> PlainTextResponse:
        authorized(request)
        engine = service.engine
        gauges = {
            "running_sequences": ("Sequences that generate now.", float(engine.running)),
            "waiting_requests": ("Requests in the queue.", float(engine.waiting)),
            "adapters": ("Adapters that are served.", float(len(service.pool.names()) - 1)),
        }
        counters = {
            "generated_tokens_total": ("Tokens written.", float(engine.generated)),
            "steps_total": ("Steps of the engine.", float(engine.steps)),
        }
        return PlainTextResponse(measures.text(gauges, counters))

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        authorized(request)
        return {"object": "list", "data": [model_facts(service, name) for name in service.pool.names()]}

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        authorized(request)
        service.pool.release(service.hold(name))
        return model_facts(service, name)

    @app.post("/v1/adapters", status_code=201)
    async def add_adapter(request: Request, body: AdapterRequest) -> dict[str, Any]:
        authorized(request)
        served = await service.add(body.name, body.folder)
        return model_facts(service, served.name)

    @app.delete("/v1/adapters/{name}")
    async def remove_adapter(request: Request, name: str) -> dict[str, Any]:
        authorized(request)
        service.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    @app.post("/v1/classify")
    async def classify(request: Request, body: ClassifyRequest) -> dict[str, Any]:
        authorized(request)
        rows = body.input if isinstance(body.input, list) else [body.input]
        labels, probabilities = await service.classify(body.model, rows)
        data = [
            {"index": i, "label": label, "probabilities": p}
            for i, (label, p) in enumerate(zip(labels, probabilities, strict=True))
        ]
        return {
            "id": identifier("classify"),
            "object": "list",
            "created": int(time.time()),
            "model": body.model,
            "data": data,
        }

    @app.post("/v1/completions", response_model=None, responses=STREAMS)
    async def completions(request: Request, body: CompletionRequest) -> Any:
        authorized(request)
        if body.echo:
            raise Refused(400, "echo is not done here; the prompt is the client's already")
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        return await answer(service, body, prompts, sampling_of(body, body.max_tokens), chat=False)

    @app.post("/v1/chat/completions", response_model=None, responses=STREAMS)
    async def chat(request: Request, body: ChatRequest) -> Any:
        authorized(request)
        wanted = body.max_completion_tokens or body.max_tokens or min(128, service.limits.new_tokens)
        prompt = service.chat_prompt([{"role": message.role, "content": message.content} for message in body.messages])
        return await answer(service, body, [prompt], sampling_of(body, wanted), chat=True)

    return app


def problem(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    """An error as OpenAI's clients read it."""
    text = message.encode("utf8", "replace").decode()
    return JSONResponse({"error": {"message": text, "type": kind, "param": None, "code": kind}}, status)


def model_facts(service: Service, name: str) -> dict[str, Any]:
    """One entry of /v1/models."""
    served = service.pool.get(name)
    facts: dict[str, Any] = {"id": name, "object": "model", "created": service.started, "owned_by": "dollartune"}
    if served is not None:
        methods = [method.name for method in served.adapter.methods]
        facts |= {
            "created": served.created,
            "parent": service.pool.base_name,
            "methods": methods,
            "task": (served.info.get("task") or {}).get("name"),
        }
    return facts


def sampling_of(body: GenerationRequest, max_tokens: int) -> Sampling:
    """A request's settings."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(body.temperature, body.top_p, body.seed, max_tokens, stop)


def identifier(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:24]}"


async def answer(service: Service, body: GenerationRequest, prompts: list[str], sampling: Sampling, chat: bool) -> Any:
    """Generates, and answers in one piece or as a stream of events."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()

    def emit(index: int) -> Any:
        def put(piece: str, reason: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (index, piece, reason))

        return put

    sequences = service.generate(body.model, prompts, sampling, emit)
    shape = Shape(body, chat, sequences)
    if body.stream:
        return StreamingResponse(
            events(shape, queue), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
    texts, reasons = [""] * len(prompts), [""] * len(prompts)
    try:
        while not all(reasons):
            index, piece, reason = await queue.get()
            texts[index] += piece
            reasons[index] = reason or reasons[index]
    finally:
        for sequence in sequences:
            sequence.cancelled.set()
    if "timeout" in reasons:
        raise Refused(504, f"the answer took longer than {service.limits.request_seconds:g} seconds", "timeout")
    if "cancelled" in reasons:
        raise Refused(503, "the server is stopping", "service_unavailable")
    if "error" in reasons:
        raise Refused(500, "the model failed on this request; the server's log says why", "server_error")
    return shape.whole(texts, reasons)


class Shape:
    """OpenAI's objects around texts."""

    def __init__(self, body: GenerationRequest, chat: bool, sequences: list[Sequence]) -> None:
        self.body, self.chat, self.sequences = body, chat, sequences
        self.head = {"id": identifier("chatcmpl" if chat else "cmpl"), "created": int(time.time()), "model": body.model}

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        read, written = sum(len(s.prompt) for s in self.sequences), sum(len(s.tokens) for s in self.sequences)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append({"index": index, **body, "logprobs": None, "finish_reason": reason})
        return {
            **self.head,
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": choices,
            "usage": self.usage(),
        }

    def chunk(self, index: int, piece: str, reason: str | None, first: bool) -> dict[str, Any]:
        """One event of a stream."""
        delta: dict[str, Any] = {"content": piece} if piece or first else {}
        body = {"delta": {"role": "assistant", **delta} if first else delta} if self.chat else {"text": piece}
        choice = {"index": index, **body, "logprobs": None, "finish_reason": reason}
        return {**self.head, "object": "chat.completion.chunk" if self.chat else "text_completion", "choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The event with the usage, where it is asked for."""
        return {
            **self.head,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "choices": [],
            "usage": self.usage(),
        }


async def events(shape: Shape, queue: asyncio.Queue[tuple[int, str, str | None]]) -> AsyncIterator[str]:
    """Server-sent events until every sequence has ended; a client that goes away ends its sequences."""
    running = set(range(len(shape.sequences)))
    begun: set[int] = set()
    try:
        while running:
            index, piece, reason = await queue.get()
            if reason in ("timeout", "error", "cancelled"):
                message = {
                    "timeout": "the answer took too long",
                    "error": "the model failed",
                    "cancelled": "the server is stopping",
                }[reason]
                yield f"data: {json.dumps({'error': {'message': message, 'type': reason, 'param': None, 'code': reason}})}\n\n"
                return
            if reason is not None:
                running.discard(index)
            yield f"data: {json.dumps(shape.chunk(index, piece, reason, index not in begun), ensure_ascii=False)}\n\n"
            begun.add(index)
        if shape.body.stream_options is not None and shape.body.stream_options.include_usage:
            yield f"data: {json.dumps(shape.last())}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for sequence in shape.sequences:
            sequence.cancelled.set()
