"""Texts as they grow, as one object or as a stream of events, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, StreamingResponse

from dollartune.serve.limits import Refused

if TYPE_CHECKING:
    from dollartune.backbones.chat import Turn
    from dollartune.serve.schema import GenerationRequest
    from dollartune.serve.sequence import Sampling, Sequence
    from dollartune.serve.service import Service


def identifier(prefix: str) -> str:
    """A name that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex[:24]}"


async def answer(
    service: Service, body: GenerationRequest, prompts: Seq[str | list[Turn]], sampling: Sampling, chat: bool
) -> Any:
    """Generates, and answers in one piece or as a stream of events."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()

    def emit(index: int) -> Any:
        def put(piece: str, reason: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (index, piece, reason))

        return put

    sequences = service.generate(body.model, prompts, sampling, emit, body.stream)
    response = ResponseFormat(body, chat, sequences)
    if body.stream:
        return StreamingResponse(
            events(response, queue), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
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
    if "not_finite" in reasons:
        raise Refused(400, f"model {body.model[:100]!r} computes values that are not finite", "not_finite")
    if "timeout" in reasons:
        raise Refused(504, f"the answer took longer than {service.limits.request_seconds:g} seconds", "timeout")
    if "cancelled" in reasons:
        raise Refused(503, "the server is stopping", "service_unavailable")
    if "error" in reasons:
        raise Refused(500, "the model failed on this request; the server's log says why", "server_error")
    return JSONResponse(response.whole(texts, reasons))


class ResponseFormat:
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


async def events(response: ResponseFormat, queue: asyncio.Queue[tuple[int, str, str | None]]) -> AsyncIterator[str]:
    """Server-sent events until every sequence has ended; a client that goes away ends its sequences."""
    running = set(range(len(response.sequences)))
    begun: set[int] = set()
    try:
        while running:
            index, piece, reason = await queue.get()
            if reason in ("timeout", "error", "cancelled", "not_finite"):
                message = {
                    "timeout": "the answer took too long",
                    "error": "the model failed",
                    "cancelled": "the server is stopping",
                    "not_finite": "the model computes values that are not finite",
                }[reason]
                yield f"data: {json.dumps({'error': {'message': message, 'type': reason, 'param': None, 'code': reason}})}\n\n"
                return
            if reason is not None:
                running.discard(index)
            yield f"data: {json.dumps(response.chunk(index, piece, reason, index not in begun), ensure_ascii=False)}\n\n"
            begun.add(index)
        if response.body.stream_options is not None and response.body.stream_options.include_usage:
            yield f"data: {json.dumps(response.last())}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for sequence in response.sequences:
            sequence.cancelled.set()
