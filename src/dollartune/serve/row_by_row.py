"""The batch of decoders whose rows cannot share a cache: each row goes on from its own.

State-space models, recurrences and short convolutions keep something else than a key and a value per place; indexers keep more
beside them; and some families' code counts the padding before a row. Such rows are read and stepped one by one, without padding,
as transformers' own generation does with one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dollartune.attachment.exact_head import exact_head, exact_likeliest
from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import prepare_inputs, tell_edits
from dollartune.serve.batch import RunningBatch
from dollartune.serve.reading import cache_input, run_pass

if TYPE_CHECKING:
    from dollartune.serve.pool import Pool
    from dollartune.serve.sequence import Sequence


@dataclass
class _Kept:
    """What a row goes on from."""

    cache: Any
    """None where a family keeps nothing: then every step reads the whole text."""
    places: int
    """Tokens in it, virtual ones included."""
    position: Tensor | None
    """(1, 1): of the next token, where the prompt was told positions."""


class RowByRowBatch(RunningBatch):
    """Rows that take turns within a step."""

    def __init__(self, pool: Pool, end_tokens: frozenset[int]) -> None:
        super().__init__(pool, end_tokens)
        self._prompts: list[Sequence] = []
        self._kept: dict[int, _Kept] = {}
        self._cache_input = cache_input(pool.backbone.model)

    @property
    def waits(self) -> list[Sequence]:
        return self._prompts

    def begin(self, sequences: list[Sequence]) -> None:
        self._prompts = list(sequences)

    @torch.inference_mode()
    def read(self, most: int) -> int:
        """Reads prompts, each as a whole, until so many tokens are read."""
        tokens = 0
        while self._prompts and tokens < most:
            row = self._prompts.pop(0)
            if row.finished is not None:
                continue
            tokens += len(row.prompt)
            self._take(self._read_whole(row), [row])
            if row.finished is None:
                self.rows.append(row)
            else:
                self._kept.pop(id(row), None)
        return tokens

    @torch.inference_mode()
    def step(self) -> None:
        for row in self.rows:
            self._take(self._go_on(row), [row])
        self.leave()

    def leave(self) -> None:
        for row in self.rows:
            if row.finished is not None:
                self._kept.pop(id(row), None)
        self.rows = [row for row in self.rows if row.finished is None]

    def _read_whole(self, row: Sequence) -> Tensor:
        """Logits (1, vocabulary) after a row's prompt and what it has written."""
        pool, prompt = self.pool, row.prompt
        ids = torch.tensor([[*prompt, *row.tokens]], device=pool.backbone.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        exact = exact_head if row.scores_prompt else exact_likeliest
        with pool.attached.routed(*pool.assignments([row.served]), batch_rows=1), exact(pool.attached):
            ready = prepare_inputs(pool.attached, inputs, ids.new_tensor([len(prompt)]))
            given = ready.inputs
            logits, cache = run_pass(pool.attached, given, ready.state, DecodeCache(), row.scores_prompt)
        if row.scores_prompt:
            if not row.tokens:
                # virtual tokens come before a prompt, so that its places are the last ones
                row.score_prompt(logits[0, -len(prompt) :])
            logits = logits[:, -1]
        positions = given.get("position_ids")
        position = None if positions is None else positions[:, -1:] + 1
        self._kept[id(row)] = _Kept(cache, given["attention_mask"].shape[1], position)
        return logits

    def _go_on(self, row: Sequence) -> Tensor:
        """Logits (1, vocabulary) after a row's last token."""
        kept, pool = self._kept[id(row)], self.pool
        if kept.cache is None:
            return self._read_whole(row)
        device = pool.backbone.device
        kept.places += 1
        given: dict[str, Any] = {
            "input_ids": torch.tensor([[row.tokens[-1]]], device=device),
            self._cache_input: kept.cache,
        }
        if self._cache_input == "past_key_values":
            given["attention_mask"] = torch.ones(1, kept.places, dtype=torch.long, device=device)
        # Else a mask is of the tokens that are passed, and not of those before: one of all places would be taken for them.
        if kept.position is not None:
            given["position_ids"], kept.position = kept.position, kept.position + 1
        with pool.attached.routed(*pool.assignments([row.served], prompts=False), batch_rows=1):
            state = tell_edits(pool.attached.state, pool.attached.anatomy, None)
            logits, kept.cache = run_pass(pool.attached, given, state, DecodeCache())
        return logits
