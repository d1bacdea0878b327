"""What stands before every address: limits on the size and speed of bodies, and metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from dollartune.serve.limits import Limits
    from dollartune.serve.metrics import ServerMetrics


class LimitsMiddleware:
    """ASGI middleware. A body is read whole, within its limits, before the application sees the request."""

    def __init__(self, app: Any, limits: Limits, metrics: ServerMetrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._open = 0
        """Requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        # Requests, not connections. Four times the queue leaves room for those that are refused, listed or read slowly.
        counted = scope["path"] != "/health"  # a full server is alive, and a load balancer must hear so
        if counted and self._open >= 4 * self.limits.queue:
            await refuse(send, 503, f"{self._open} requests are open already", [(b"retry-after", b"1")])
            return
        self._open += counted
        try:
            await self._limited(scope, receive, send, started, status)
        finally:
            self._open -= counted

    async def _limited(self, scope: Scope, receive: Receive, send: Send, started: float, status: int) -> None:

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                route = scope.get("route")
                path = getattr(route, "path", "other")  # the address's pattern, so that names do not become labels
                self.metrics.observe(path, status, time.perf_counter() - started)
            await send(message)

        # The body is read whole before the application sees it: a slow client must not hold one of its tasks half-way, and no
        # parser meets a body above the limit.
        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            try:
                body = await asyncio.wait_for(self._body(scope, receive), self.limits.body_seconds)
            except TimeoutError:
                await refuse(sending, 408, f"the body took longer than {self.limits.body_seconds:g} seconds")
                return
            if dict(scope["headers"]).get(b"content-encoding", b"identity").lower() != b"identity":
                await refuse(sending, 415, "a packed body (content-encoding) is not read; send it as it is")
                return
            if half_a_character(body or b""):
                await refuse(
                    sending, 400, "the body has half of a surrogate pair (\\ud800 to \\udfff alone), which is no text"
                )
                return
            if body is None:
                await refuse(sending, 413, f"the body is larger than {self.limits.body_bytes:,} bytes")
                return
            given = False

            async def replay() -> Message:
                nonlocal given
                if not given:
                    given = True
                    return {"type": "http.request", "body": body, "more_body": False}
                return await receive()

            await self.app(scope, replay, sending)
            return
        await self.app(scope, receive, sending)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None if it is too large."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        # What is announced too large is refused unread. The header may lie or be absent (chunked), so bytes are counted as
        # well.
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return None
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            # A client that left gets a cut body parsed and refused as malformed; nobody reads that answer.
            if message["type"] == "http.disconnect":
                return b"".join(pieces)
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.limits.body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(pieces)


def half_a_character(body: bytes) -> bool:
    """Whether a JSON body names half of a surrogate pair, which no tokenizer and no answer can carry."""
    if b"\\u" not in body:
        return False
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode("utf8")
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):  # no JSON: the application says what is wrong
        return False
    return False


async def refuse(send: Any, status: int, message: str, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answers without the application; the connection is closed, since the rest of the body is not read."""
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
