"""One generation: its settings, its tokens, its text as it grows, and when it ends."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.serve.constraint import TooComplex

if TYPE_CHECKING:
    from dollartune.serve.constraint import Grammar
    from dollartune.serve.pool import Served

COLDEST = 1e-4
"""Temperatures below it are greedy; the logits over them would overflow."""


_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""What loses a space as soon as it is whole, by transformers' `clean_up_tokenization`, where a tokenizer asks for that (T5's, of
before transformers 5)."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    top_k: int = 0
    """Likeliest tokens that may be drawn; 0 and -1 are all."""
    min_p: float = 0.0
    """Tokens below this share of the likeliest one's probability are not drawn (Nguyen et al., 2024)."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and answer, as vLLM has it (Keskar et al., 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_end: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    """How many of the likeliest tokens are recorded beside each token's own log-probability; None records nothing."""
    echo: bool = False
    """The prompt's tokens are recorded too."""
    grammar: Grammar | None = None
    """What the answer may be; None is any text."""

    @property
    def plain(self) -> bool:
        """Whether the likeliest token by the bare logits is the next one."""
        return self.temperature == 0 and not (
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1
            or self.logit_bias
            or self.min_tokens
            or self.grammar is not None
        )


@dataclass(frozen=True)
class Scored:
    """A token with what the model thought of it."""

    token: int
    logprob: float | None
    """Natural logarithm of its probability at temperature 1; None for the first token of a prompt."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at that place."""


def score(logits: Tensor, tokens: list[int], top: int) -> list[Scored]:
    """Scores tokens by the logits (tokens, vocabulary) that came before each."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    rows = zip(tokens, chosen, ids.tolist(), values.tolist(), strict=True)
    return [Scored(token, own, tuple(zip(i, v, strict=True))) for token, own, i, v in rows]


@dataclass
class Sequence:
    """A prompt and what is written after it.

    `emit` is called on the engine's thread with each new piece of text and, at the end, with the reason: `stop`, `length`,
    `cancelled`, `timeout`, `not_finite`, `too_complex` or `error`.
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
    _stops_from: int = 0
    """Where in `text` stop texts are looked for."""
    finished: str | None = None
    released: bool = False
    """Whether its adapter has been let go of."""
    streams: bool = True
    """Whether pieces are wanted as they come; else the whole text is decoded and emitted once, at the end."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    scored: list[Scored] = field(default_factory=list)
    """The written tokens, where log-probabilities are wanted."""
    prompt_scored: list[Scored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(
            # A generator per sequence: a text with a seed is the same whoever else is in the batch. Without one no clock
            # decides, which may stand still while the n answers of a request are begun.
            self.sampling.seed if self.sampling.seed is not None else secrets.randbits(63)
        )
        self._constraint = self.sampling.grammar.begin() if self.sampling.grammar is not None else None

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits at every place of the prompt are needed."""
        return self.sampling.echo and self.sampling.logprobs is not None

    def score_prompt(self, logits: Tensor) -> None:
        """Records the prompt's tokens from logits (prompt, vocabulary)."""
        ids, top = list(self.prompt), self.sampling.logprobs or 0
        rest = score(logits[: len(ids) - 1], ids[1:], top) if len(ids) > 1 else []
        self.prompt_scored = [Scored(ids[0], None), *rest]

    def _adjusted(self, logits: Tensor, end_tokens: frozenset[int]) -> Tensor:
        """Logits (vocabulary,) under penalties and biases, which count before temperature, as OpenAI's do."""
        sampling = self.sampling
        # A clone: log-probabilities are recorded of the logits as they were given.
        logits = logits.float().cpu().clone()
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted({*self.prompt, *self.tokens}))
            factor = sampling.repetition_penalty
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        if (sampling.frequency_penalty or sampling.presence_penalty) and self.tokens:
            ids, counts = torch.tensor(self.tokens).unique(return_counts=True)
            logits[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        for token, bias in sampling.logit_bias:
            logits[token] += bias
        if len(self.tokens) < sampling.min_tokens:
            logits[sorted(end_tokens | sampling.stop_tokens)] = -torch.inf
        # Last: whatever was added or taken before, only what the grammar allows may follow.
        return logits if self._constraint is None else self._constraint.mask(logits)

    def choose(self, logits: Tensor, end_tokens: frozenset[int] = frozenset()) -> int:
        """The next token from logits (vocabulary,).

        Raises:
            TooComplex: the answer's grammar does not tell what may follow.
        """
        logits = self._adjusted(logits, end_tokens)
        if self.sampling.temperature < COLDEST:
            return int(logits.argmax())
        # Drawn on the processor in fp32: a GPU's generator would give other texts for the same seed, and bf16 merges unlikely
        # tokens.
        probabilities = (logits.float().cpu() / self.sampling.temperature).softmax(-1)
        if 0 < self.sampling.top_k < len(probabilities):
            probabilities[probabilities < probabilities.topk(self.sampling.top_k).values[-1]] = 0
        if self.sampling.min_p > 0:
            probabilities[probabilities < self.sampling.min_p * probabilities.max()] = 0
        if self.sampling.top_p < 1:
            probabilities = probabilities / probabilities.sum()  # its mass is of what top_k and min_p left
            ordered, indices = probabilities.sort(descending=True)
            # The mass before a token decides, so that the token which crosses top_p stays in, as in Holtzman et al. (2020).
            outside = ordered.cumsum(0) - ordered >= self.sampling.top_p
            outside[0] = False  # the likeliest token always stays, however small top_p is
            probabilities[indices[outside]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def append(self, token: int, end_tokens: frozenset[int], logits: Tensor | None = None) -> None:
        """Takes the next token, emits what is certain of the text, and decides whether this was the last.

        Args:
            logits: (vocabulary,) that it was chosen by, where its log-probability is wanted.
        """
        if token in self.sampling.stop_tokens or (token in end_tokens and not self.sampling.ignore_end):
            self.finish("stop")
            return
        self.tokens.append(token)
        if self._constraint is not None:
            try:
                self._constraint.take(token)
            except TooComplex:
                self.finish("too_complex")
                return
        if logits is not None and self.sampling.logprobs is not None:
            self.scored += score(logits[None], [token], self.sampling.logprobs)
        if self.streams or self.sampling.stop:
            self._decode()
        # As vLLM has it: what the first `min_tokens` wrote ends nothing.
        if len(self.tokens) <= self.sampling.min_tokens:
            self._stops_from = self._settled()
        for stop in self.sampling.stop:
            if (place := self.text.find(stop, self._stops_from)) >= 0:
                self.text = self.text[:place]
                self.finish("stop")
                return
        if self._constraint is not None and self._constraint.complete:
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

    def _settled(self) -> int:
        """Characters that later tokens leave as they are: no half character, and nothing that may lose a space."""
        end = len(self.text)
        # A character of several tokens decodes to U+FFFD until its last token is there.
        if self.text.endswith("\ufffd"):
            end = len(self.text.rstrip("\ufffd"))
        cleaned = _CLEANED if getattr(self.tokenizer, "clean_up_tokenization_spaces", False) else ()
        return self._before_beginnings(cleaned, end)

    def _certain(self) -> int:
        """Characters that may be sent: of the settled ones those that begin no stop text."""
        return self._before_beginnings(self.sampling.stop, self._settled())

    def _before_beginnings(self, wholes: Iterable[str], end: int) -> int:
        """Where the text up to `end` stops being sure to begin none of these."""
        for whole in wholes:
            # From the longest: what may be a beginning is held back until it is or is not one.
            for length in range(min(len(whole) - 1, end), 0, -1):
                if self.text[:end].endswith(whole[:length]):
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
