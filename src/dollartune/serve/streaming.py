"""Texts as they grow, as one object or as a stream of events, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import JSONResponse, StreamingResponse

from dollartune.backbones.chat import Turn
from dollartune.serve.limits import Refused
from dollartune.serve.logprobs import chat_logprobs, completion_logprobs, token_text
from dollartune.serve.schema import ChatRequest

if TYPE_CHECKING:
    from fastapi import Request

    from dollartune.backbones.chat import Turn
    from dollartune.serve.schema import GenerationRequest
    from dollartune.serve.sequence import Sampling, Sequence
    from dollartune.serve.service import Service


def identifier(prefix: str) -> str:
    """A name that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex[:24]}"


Prompt = str | list[int] | list[Turn]
ResultT = TypeVar("ResultT")


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What some work gives; the work ends when the client leaves, since nobody will read its answer.

    Raises:
        Refused: the client has left.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has left", "client_closed_request")  # as nginx counts it; nobody reads it
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def answer(
    service: Service, body: GenerationRequest, prompts: list[Prompt], sampling: Sampling, request: Request
) -> Any:
    """Generates, and answers in one piece or as a stream of events."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()

    def emit(index: int) -> Any:
        def put(piece: str, reason: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (index, piece, reason))

        return put

    copies = max(body.n, getattr(body, "best_of", None) or 1)
    several = [prompt for prompt in prompts for _ in range(copies)]
    sequences = service.generate(body.model, several, sampling, emit, body.stream, copies)
    response = ResponseFormat(body, sequences, copies, [p if isinstance(p, str) else None for p in several])
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
    if "timeout" in reasons:
        raise Refused(504, f"the answer took longer than {service.limits.request_seconds:g} seconds", "timeout")
    if "cancelled" in reasons:
        raise Refused(503, "the server is stopping", "service_unavailable")
    if "error" in reasons:
        raise Refused(500, "the model failed on this request; the server's log says why", "server_error")
    return JSONResponse(response.whole(texts, reasons))


class ResponseFormat:
    """OpenAI's objects around texts.

    Args:
        copies: sequences of each prompt, next to each other; the best `n` of them are answered.
        prompts: each sequence's prompt where it was given as text.
    """

    def __init__(
        self, body: GenerationRequest, sequences: list[Sequence], copies: int, prompts: list[str | None]
    ) -> None:
        self.body, self.chat, self.sequences = body, isinstance(body, ChatRequest), sequences
        self.copies, self.prompts = copies, prompts
        self.shows_logprobs = bool(body.logprobs) if isinstance(body, ChatRequest) else body.logprobs is not None  # type: ignore[attr-defined]
        self._told = [0] * len(sequences)
        self.head = {
            "id": identifier("chatcmpl" if self.chat else "cmpl"),
            "created": int(time.time()),
            "model": body.model,
        }

    def usage(self) -> dict[str, int]:
        """Tokens read and written; a prompt that is answered several times is read once."""
        read = sum(len(s.prompt) for s in self.sequences[:: self.copies])
        written = sum(len(s.tokens) for s in self.sequences)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def prefix(self, index: int) -> str:
        """The prompt's text, where it is wanted before the answer."""
        if not self.sequences[index].sampling.echo:
            return ""
        text = self.prompts[index]
        sequence = self.sequences[index]
        return text if text is not None else str(sequence.tokenizer.decode(sequence.prompt))

    def logprobs(self, index: int) -> dict[str, Any] | None:
        """Log-probabilities of the tokens that were not told of yet, in OpenAI's shape of the address."""
        if not self.shows_logprobs:
            return None
        sequence = self.sequences[index]
        prompt = sequence.prompt_scored if not self.chat else []
        records = [*prompt, *sequence.scored]
        start, self._told[index] = self._told[index], len(records)
        offset = sum(len(token_text(sequence.tokenizer, r.token)) for r in records[:start])
        shape = chat_logprobs(sequence.tokenizer, records[start:])
        return shape if self.chat else completion_logprobs(sequence.tokenizer, records[start:], offset)

    def _chosen(self) -> list[int]:
        """The sequences that are answered: of each prompt's, the n likeliest by token."""
        chosen: list[int] = []
        for start in range(0, len(self.sequences), self.copies):
            indices = list(range(start, start + self.copies))
            if self.copies > self.body.n:
                indices = sorted(indices, key=self._mean_logprob, reverse=True)[: self.body.n]
            chosen += indices
        return chosen

    def _mean_logprob(self, index: int) -> float:
        scored = self.sequences[index].scored
        return sum(record.logprob or 0.0 for record in scored) / max(len(scored), 1)

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for number, index in enumerate(self._chosen()):
            text = self.prefix(index) + texts[index]
            body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append({"index": number, **body, "logprobs": self.logprobs(index), "finish_reason": reasons[index]})
        return {
            **self.head,
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": choices,
            "usage": self.usage(),
        }

    def chunk(self, index: int, piece: str, reason: str | None, first: bool) -> dict[str, Any]:
        """One event of a stream."""
        if first:
            piece = self.prefix(index) + piece
        delta: dict[str, Any] = {"content": piece} if piece or first else {}
        body = {"delta": {"role": "assistant", **delta} if first else delta} if self.chat else {"text": piece}
        choice = {"index": index, **body, "logprobs": self.logprobs(index), "finish_reason": reason}
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
