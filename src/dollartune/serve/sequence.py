"""One generation: its settings, its tokens, its text as it grows, and when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dollartune.serve.pool import Served

COLDEST = 1e-4
"""Temperatures below it are greedy; the logits over them would overflow."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop: tuple[str, ...] = ()


@dataclass
class Sequence:
    """A prompt and what is written after it.

    `emit` is called on the engine's thread with each new piece of text and, at the end, with the reason: `stop`, `length`,
    `cancelled`, `timeout` or `error`.
    """

    served: Served | None
    prompt: tuple[int, ...]
    sampling: Sampling
    emit: Callable[[str, str | None], None]
    tokenizer: Any
    deadline: float
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    """Characters of `text` that were emitted."""
    finished: str | None = None
    released: bool = False
    """Whether its adapter has been let go of."""
    streams: bool = True
    """Whether pieces are wanted as they come; else the whole text is decoded and emitted once, at the end."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(
            # A generator per sequence: a text with a seed is the same whoever else is in the batch.
            self.sampling.seed if self.sampling.seed is not None else time.time_ns() % 2**63
        )

    def choose(self, logits: Tensor) -> int:
        """The next token from logits (vocabulary,)."""
        if self.sampling.temperature < COLDEST:
            return int(logits.argmax())
        # Drawn on the processor in fp32: a GPU's generator would give other texts for the same seed, and bf16 merges unlikely
        # tokens.
        probabilities = (logits.float().cpu() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            ordered, indices = probabilities.sort(descending=True)
            # The mass before a token decides, so that the token which crosses top_p stays in, as in Holtzman et al. (2020).
            outside = ordered.cumsum(0) - ordered >= self.sampling.top_p
            outside[0] = False  # the likeliest token always stays, however small top_p is
            probabilities[indices[outside]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def append(self, token: int, end_tokens: frozenset[int]) -> None:
        """Takes the next token, emits what is certain of the text, and decides whether this was the last."""
        if token in end_tokens:
            self.finish("stop")
            return
        self.tokens.append(token)
        if self.streams or self.sampling.stop:
            self._decode()
        for stop in self.sampling.stop:
            if (place := self.text.find(stop)) >= 0:
                self.text = self.text[:place]
                self.finish("stop")
                return
        if len(self.tokens) >= self.sampling.max_tokens:
            self.finish("length")
            return
        if self.streams:
            self._send(self._certain())

    def _decode(self) -> None:
        # All tokens each time: a token's text depends on those before it (spaces, characters of several tokens).
        self.text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _certain(self) -> int:
        """Characters that later tokens cannot change: no half character, nothing that may begin a stop text."""
        end = len(self.text)
        # A character of several tokens decodes to U+FFFD until its last token is there.
        if self.text.endswith("\ufffd"):
            end = len(self.text.rstrip("\ufffd"))
        for stop in self.sampling.stop:
            # From the longest: what may be the beginning of a stop text is held back until it is or is not one.
            for length in range(min(len(stop) - 1, end), 0, -1):
                if self.text[:end].endswith(stop[:length]):
                    end -= length
                    break
        return end

    def _send(self, end: int) -> None:
        if end > self.sent:
            self.emit(self.text[self.sent : end], None)
            self.sent = end

    def finish(self, reason: str) -> None:
        """Ends the generation and emits what is left of its text."""
        if self.finished is None:
            self.finished = reason
            if not (self.streams or self.sampling.stop):
                self._decode()
            self._send(len(self.text))
            self.emit("", reason)
