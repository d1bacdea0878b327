"""OpenAI's objects around texts: whole answers, events of streams, calls of tools, usage."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from dollartune.serve.logprobs import chat_logprobs, completion_logprobs, token_text
from dollartune.serve.schema import ChatRequest
from dollartune.serve.tools import ToolCall, ToolUse, read_calls

if TYPE_CHECKING:
    from dollartune.serve.schema import GenerationRequest
    from dollartune.serve.sequence import Sequence


def identifier(prefix: str) -> str:
    """A name that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex[:24]}"


class ResponseFormat:
    """OpenAI's objects around texts.

    Args:
        copies: sequences of each prompt, next to each other; the best `n` of them are answered.
        prompts: each sequence's prompt where it was given as text.
        use: how answers call tools.
    """

    def __init__(
        self,
        body: GenerationRequest,
        sequences: list[Sequence],
        copies: int,
        prompts: list[str | None],
        use: ToolUse | None = None,
    ) -> None:
        self.body, self.chat, self.sequences = body, isinstance(body, ChatRequest), sequences
        self.copies, self.prompts, self.use = copies, prompts, use
        self.shows_logprobs = bool(body.logprobs) if isinstance(body, ChatRequest) else body.logprobs is not None  # type: ignore[attr-defined]
        self._told = [0] * len(sequences)
        self._called: set[int] = set()
        """Sequences whose stream has told calls of tools."""
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

    def logprobs(self, index: int) -> dict[str, object] | None:
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

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, object]:
        """The answer in one piece."""
        choices = []
        for number, index in enumerate(self._chosen()):
            text, calls = self._with_calls(self.prefix(index) + texts[index])
            said: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                said |= {"content": text or None, "tool_calls": [call.entry() for call in calls]}
            body = {"message": said} if self.chat else {"text": text}
            reason = self._reason(reasons[index], calls)
            choices.append({"index": number, **body, "logprobs": self.logprobs(index), "finish_reason": reason})
        return {
            **self.head,
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": choices,
            "usage": self.usage(),
        }

    def chunks(self, index: int, piece: str, reason: str | None, first: bool) -> list[dict[str, object]]:
        """The events by which a stream tells a piece: one, or one for each call, as clients expect them."""
        if first:
            piece = self.prefix(index) + piece
        if not self.chat:
            return [self._chunk(index, {"text": piece}, reason)]
        deltas: list[dict[str, object]]
        if self.use is not None and self.use.named is not None:
            deltas = [self._named_delta(self.use.named, piece, first)]
        elif self.use is not None:  # whole, in one piece
            text, calls = self._with_calls(piece)
            # llama-index reads the first call of an event and no other.
            deltas = [{"content": text}] if text or (first and not calls) else []
            deltas += [{"tool_calls": [{"index": number, **call.entry()}]} for number, call in enumerate(calls)]
            deltas = deltas or [{}]
            if calls:
                self._called.add(index)
            reason = "tool_calls" if reason == "stop" and index in self._called else reason
        else:
            deltas = [{"content": piece} if piece or first else {}]
        if first:
            deltas[0] = {"role": "assistant", **deltas[0]}
        return [
            self._chunk(index, {"delta": delta}, reason if number == len(deltas) else None)
            for number, delta in enumerate(deltas, 1)
        ]

    def _chunk(self, index: int, body: dict[str, object], reason: str | None) -> dict[str, object]:
        """One event of a stream, with the log-probabilities that were not told of yet."""
        choice = {"index": index, **body, "logprobs": self.logprobs(index), "finish_reason": reason}
        return {**self.head, "object": "chat.completion.chunk" if self.chat else "text_completion", "choices": [choice]}

    def _with_calls(self, text: str) -> tuple[str, list[ToolCall]]:
        if self.use is None:
            return text, []
        if self.use.named is not None:
            return "", [ToolCall(self.use.named, text)]
        return read_calls(text, self.use)

    def _reason(self, reason: str, calls: list[ToolCall]) -> str:
        # OpenAI says `stop` where the request named the function, and `tool_calls` where the model chose to call.
        chose = calls and self.use is not None and self.use.named is None
        return "tool_calls" if reason == "stop" and chose else reason

    @staticmethod
    def _named_delta(name: str, piece: str, first: bool) -> dict[str, object]:
        """The call's head with the first piece of its arguments, then the arguments alone."""
        if first:
            return {"content": None, "tool_calls": [{"index": 0, **ToolCall(name, piece).entry()}]}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} if piece else {}

    def last(self) -> dict[str, object]:
        """The event with the usage, where it is asked for."""
        return {
            **self.head,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "choices": [],
            "usage": self.usage(),
        }
