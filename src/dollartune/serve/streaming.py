"""Texts as they grow, as one object or as a stream of events, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import JSONResponse, StreamingResponse

from dollartune.serve.limits import Refused
from dollartune.serve.response import ResponseFormat

if TYPE_CHECKING:
    from fastapi import Request

    from dollartune.serve.prompts import Prompt
    from dollartune.serve.schema import GenerationRequest
    from dollartune.serve.sequence import Sampling
    from dollartune.serve.service import Service
    from dollartune.serve.tools import ToolUse


ResultT = TypeVar("ResultT")
_FAILURES = {
    "timeout": "the answer took too long",
    "error": "the model failed",
    "cancelled": "the server is stopping",
    "not_finite": "the model computes values that are not finite",
    "too_complex": "the schema is too complex to be followed",
}
"""Why a text ends that is no answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What some work gives; the work ends when the client leaves, since nobody will read its answer.

    Raises:
        Refused: the client has left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(left())
    await asyncio.sleep(0)  # who left while others' requests were read has nothing begun for it
    if watcher.done():
        work.close()
        raise Refused(499, "the client has left", "client_closed_request")  # as nginx counts it; nobody reads it
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has left", "client_closed_request")
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        # Waited for: in the end of the work its adapter is let go of.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def answer(
    service: Service,
    body: GenerationRequest,
    prompts: list[Prompt],
    sampling: Sampling,
    request: Request,
    use: ToolUse | None = None,
) -> Any:
    """Generates, and answers in one piece or as a stream of events.

    Args:
        use: how the answer calls tools.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()

    def emit(index: int) -> Any:
        def put(piece: str, reason: str | None) -> None:
            # This is called on the engine's thread; a queue of asyncio belongs to the loop's.
            loop.call_soon_threadsafe(queue.put_nowait, (index, piece, reason))

        return put

    copies = max(body.n, getattr(body, "best_of", None) or 1)
    several = [prompt for prompt in prompts for _ in range(copies)]
    # A call is known when it is whole; the arguments of a named one may be told as they come.
    in_pieces = body.stream and (use is None or use.named is not None)
    sequences = await service.generate(body.model, several, sampling, emit, in_pieces, copies)
    response = ResponseFormat(body, sequences, copies, [p if isinstance(p, str) else None for p in several], use)
    if body.stream:
        return StreamingResponse(
            events(response, queue), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
    texts, reasons = [""] * len(several), [""] * len(several)

    async def collect() -> None:
        while not all(reasons):
            index, piece, reason = await queue.get()
            texts[index] += piece
            reasons[index] = reason or reasons[index]

    try:
        await while_connected(request, collect())
    finally:
        for sequence in sequences:
            sequence.cancelled.set()
    if "not_finite" in reasons:
        raise Refused(400, f"model {body.model[:100]!r} computes values that are not finite", "not_finite")
    if "too_complex" in reasons:
        raise Refused(400, _FAILURES["too_complex"], param="response_format" if use is None else "tools")
    if "timeout" in reasons:
        raise Refused(504, f"the answer took longer than {service.limits.request_seconds:g} seconds", "timeout")
    if "cancelled" in reasons:
        raise Refused(503, "the server is stopping", "service_unavailable")
    if "error" in reasons:
        raise Refused(500, "the model failed on this request; the server's log says why", "server_error")
    return JSONResponse(response.whole(texts, reasons))


async def events(response: ResponseFormat, queue: asyncio.Queue[tuple[int, str, str | None]]) -> AsyncIterator[str]:
    """Server-sent events until every sequence has ended; a client that goes away ends its sequences."""
    running = set(range(len(response.sequences)))
    begun: set[int] = set()
    try:
        while running:
            index, piece, reason = await queue.get()
            if reason in _FAILURES:
                error = {"message": _FAILURES[reason], "type": reason, "param": None, "code": reason}
                yield f"data: {json.dumps({'error': error})}\n\n"
                return
            if reason is not None:
                running.discard(index)
            for chunk in response.chunks(index, piece, reason, index not in begun):
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            begun.add(index)
        if response.body.stream_options is not None and response.body.stream_options.include_usage:
            yield f"data: {json.dumps(response.last())}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for sequence in response.sequences:
            sequence.cancelled.set()
