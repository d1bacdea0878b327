"""What the server answers at which address; the shapes are OpenAI's where it has the address."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from dollartune.backbones.chat import Turn
from dollartune.serve.limits import Refused
from dollartune.serve.metrics import ServerMetrics
from dollartune.serve.schema import AdapterRequest, ChatRequest, ClassifyRequest, CompletionRequest, GenerationRequest
from dollartune.serve.sequence import Sampling
from dollartune.serve.streaming import answer, identifier

if TYPE_CHECKING:
    from dollartune.serve.service import Service

STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""Answers of one piece are JSON, streams are events."""


def health_address(service: Service) -> APIRouter:
    """`/health`, the one address without a key."""
    router = APIRouter()

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
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_facts(service, name) for name in service.pool.names()]}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        # Held for a moment: the same look-up, and the same error, as a request that uses the adapter.
        service.pool.release(service.hold(name))
        return model_facts(service, name)

    @router.post("/v1/adapters", status_code=201)
    async def add_adapter(body: AdapterRequest) -> dict[str, Any]:
        served = await service.add(body.name, body.folder, body.replace)
        return model_facts(service, served.name)

    @router.delete("/v1/adapters/{name}")
    async def remove_adapter(name: str) -> dict[str, Any]:
        service.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    return router


def task_addresses(service: Service) -> APIRouter:
    """Text after a prompt, and labels with their probabilities."""
    router = APIRouter()

    @router.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> dict[str, Any]:
        rows = body.input if isinstance(body.input, list) else [body.input]
        labels, probabilities = await service.classify(body.model, rows)
        data = [
            {"index": index, "label": label, "probabilities": own}
            for index, (label, own) in enumerate(zip(labels, probabilities, strict=True))
        ]
        head = {"id": identifier("classify"), "object": "list", "created": int(time.time()), "model": body.model}
        return {**head, "data": data}

    @router.post("/v1/completions", response_model=None, responses=STREAMS)
    async def completions(body: CompletionRequest) -> Any:
        if body.echo:
            raise Refused(400, "echo is not done here; the prompt is the client's already")
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        return await answer(service, body, prompts, sampling_of(body, body.max_tokens), chat=False)

    @router.post("/v1/chat/completions", response_model=None, responses=STREAMS)
    async def chat(body: ChatRequest) -> Any:
        # OpenAI has no default for chats; without one a text would run to the end of the context. 128 tokens are a short
        # answer.
        wanted = body.max_completion_tokens or body.max_tokens or min(128, service.limits.new_tokens)
        turns: list[Turn] = [(message.role, message.content) for message in body.messages]
        return await answer(service, body, [turns], sampling_of(body, wanted), chat=True)

    return router


def model_facts(service: Service, name: str) -> dict[str, Any]:
    """One entry of /v1/models."""
    served = service.pool.get(name)
    facts: dict[str, Any] = {"id": name, "object": "model", "created": service.started, "owned_by": "dollartune"}
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
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(body.temperature, body.top_p, body.seed, max_tokens, stop)
