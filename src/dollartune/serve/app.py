"""The server as an application: its addresses, what stands before them, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dollartune.errors import nearest
from dollartune.serve.limits import Refused
from dollartune.serve.metrics import ServerMetrics
from dollartune.serve.middleware import LimitsMiddleware
from dollartune.serve.routes import adapter_addresses, health_address, metrics_address, task_addresses, token_addresses

if TYPE_CHECKING:
    from dollartune.serve.service import Service

ERRORS: dict[int | str, dict[str, object]] = {
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
        415: "The body is packed.",
        429: "The queue is full.",
        500: "The server failed.",
        503: "The server is stopping.",
        504: "It took too long.",
    }.items()
}


def create_app(service: Service, api_key: str | None = None, cors_origins: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        service: backbone, adapters and engine; the engine is started and stopped with the application.
        api_key: what `Authorization: Bearer` must hold for every address but /health; None lets everyone in.
        cors_origins: web pages whose scripts may ask (`https://example.org`, or `*` for all); none by default.
    """
    metrics = ServerMetrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.stop)

    app = FastAPI(title="DollarTune", version="1", lifespan=lifespan, responses=ERRORS)
    app.add_middleware(LimitsMiddleware, limits=service.limits, metrics=metrics)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    answer_errors(app)
    key = [Depends(demand_key(api_key))]
    app.include_router(health_address(service))
    app.include_router(metrics_address(metrics), dependencies=key)
    app.include_router(adapter_addresses(service), dependencies=key)
    app.include_router(task_addresses(service), dependencies=key)
    app.include_router(token_addresses(service), dependencies=key)
    return app


def demand_key(api_key: str | None) -> Callable[[Request], Awaitable[None]]:
    """What an address depends on where it takes a key."""

    async def authorized(request: Request) -> None:  # a plain function would be given to a thread at every request
        if api_key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            # compare_digest takes equally long wherever the keys differ, so that a key cannot be guessed letter by letter.
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
                raise Refused(401, "no API key, or a wrong one: send Authorization: Bearer KEY", "authentication_error")

    return authorized


def answer_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        answer = problem(error.status, error.message, error.kind, error.param)
        if error.status in (429, 503):
            answer.headers["Retry-After"] = "1"  # seconds; a place in the queue is free after a few steps
        return answer

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = _most_specific(error.errors())
        if first["type"] == "json_invalid":
            return problem(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
        path = _fields(first)
        place = ".".join(path) or "body"
        hint = "; send JSON with content-type: application/json" if not path else ""
        return problem(400, f"{place}: {first['msg']}{hint}", param=path[0] if path else None)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, _way_out(request, error, app))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "the server failed on this request; its log says why", "server_error")  # starlette logs it


_BRANCH = re.compile(r"(str|int|float|bool|dict|list|constrained-\w+)$|.*\[|[A-Z]")
"""Parts of a place that pydantic adds where a value may be of several types: `messages.0.content.list[TextPart].1.type`."""


def _fields(error: Any) -> list[str]:
    """The fields and indices that lead to an error, without the types that were tried."""
    parts = [str(part) for part in error["loc"] if part != "body"]
    # Names that a client made up may look like a type: the first part is the body's own, and an unknown field is the last one.
    unknown = {len(parts) - 1} if error["type"] == "extra_forbidden" else set()
    return [part for number, part in enumerate(parts) if number in {0} | unknown or not _BRANCH.match(part)]


def _most_specific(errors: Sequence[Any]) -> Any:
    """Of the errors of the first field that has one, the deepest: where a value may be of several types, that of the type which
    it was meant to be."""
    first = errors[0]["loc"][:2]
    of_it = (error for error in errors if error["loc"][:2] == first)
    # of two that lie equally deep, the one that does not only say that the type is another
    return max(of_it, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))


_NOT_HERE = {
    "/v1/responses": "the Responses API is not spoken here; send `messages` to /v1/chat/completions",
    "/v1/messages": "Anthropic's API is not spoken here; send `messages` to /v1/chat/completions, with OpenAI's client",
}
"""Addresses that clients often try, and what they find in their place."""


def _way_out(request: Request, error: HTTPException, app: FastAPI) -> str:
    """What to do where an address or its method is not there."""
    path = request.url.path
    if error.status_code == 404:
        why = _NOT_HERE.get(path.rstrip("/"), "")
        return f"there is no address {path[:100]}" + (
            f": {why}" if why else f".{nearest(path, app.openapi()['paths'])}"
        )
    if error.status_code == 405:
        return f"{path[:100]} does not take {request.method}, but {(error.headers or {}).get('Allow', 'other methods')}"
    if error.status_code == 400:  # by FastAPI alone, of bytes that are no text
        return "the body is no JSON in UTF-8, or is nested too deeply"
    return str(error.detail)


def problem(status: int, message: str, kind: str = "invalid_request_error", param: str | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    # A message may quote a request with half of a surrogate pair, which JSON cannot carry.
    text = message.encode("utf8", "replace").decode()
    return JSONResponse({"error": {"message": text, "type": kind, "param": param, "code": kind}}, status)
