"""The running batch of a decoder: rows join and leave between steps; each row's keys and values are kept.

    cache    [ ......... | row 0: 31 places ]      padding on the left, so that all rows write their next place at the end
             [ row 1:        57 places      ]
             [ ....... | row 2: 40 places   ]
    a step   one token per row under a route that gives each row its adapter

Virtual tokens and prefixes are places of the cache, computed once per adapter (`cache.past_of`). The exceptions are prefixes
with gates, in some layers only, or in families with sliding windows: they are put before keys and values at every step.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import prepare_inputs, tell_edits
from dollartune.backbones.kind import has_window
from dollartune.serve.cache import cache_of, pairs_of
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from dollartune.attachment.pass_state import PassState
    from dollartune.serve.pool import Pool
    from dollartune.serve.sequence import Sequence

log = logging.getLogger("dollartune")


class RunningBatch:
    """Rows that generate together.

    Args:
        pool: gives the backbone and the routes.
        end_tokens: tokens that end a text.
    """

    def __init__(self, pool: Pool, end_tokens: frozenset[int]) -> None:
        self.pool, self.end_tokens = pool, end_tokens
        self.rows: list[Sequence] = []
        self._cache = cache_of([])
        self._visible = torch.zeros(0, 0, dtype=torch.long, device=pool.backbone.device)
        """(rows, places): which places of the cache a row really has."""
        self._positions = torch.zeros(0, dtype=torch.long, device=pool.backbone.device)
        """(rows,) position of each row's next token."""
        self._takes_positions = "position_ids" in inspect.signature(type(pool.backbone.model).forward).parameters
        self._window = has_window(pool.backbone.model.config)
        self._route: list[Any] | None = None
        self._decode_cache = DecodeCache()

    @property
    def model(self) -> Any:
        return self.pool.backbone.model

    @torch.inference_mode()
    def join(self, sequences: list[Sequence]) -> None:
        """Reads the prompts of new rows in one pass, chooses their first tokens, and adds those that go on to the batch."""
        order = self.pool.order([s.served for s in sequences])
        new = [sequences[i] for i in order]
        pad = self.pool.backbone.processor.pad_token_id or 0
        inputs: dict[str, Any] = collate_prompts(
            [Encoded("", s.prompt) for s in new], pad, left=True, device=self.pool.backbone.device
        )
        attached = self.pool.attached
        route = self.pool.assignments([s.served for s in new])
        with attached.routed(*route, batch_rows=len(new)):
            ready = prepare_inputs(attached, inputs, None)
            prepared = ready.inputs
            positions = self._begin(prepared, new)
            if self._window and "past_key_values" not in prepared:
                # The family's own cache drops what left the window, counted in places: rows that are padded by different
                # amounts have lost different tokens when others join them. This one keeps all; the mask is the window.
                prepared["past_key_values"] = DynamicCache()
            everywhere = any(sequence.scores_prompt for sequence in new)
            logits, cache = self._run(prepared, ready.state, DecodeCache(), everywhere)
        if everywhere:
            for row, sequence in enumerate(new):
                if sequence.scores_prompt:
                    # Padding and virtual tokens come before a prompt, so that its places are the last ones.
                    sequence.score_prompt(logits[row, -len(sequence.prompt) :])
            logits = logits[:, -1]
        self._take(logits, new)
        self._append(new, pairs_of(cache), prepared["attention_mask"].long(), positions)
        self.leave()

    def _begin(self, prepared: dict[str, Any], new: list[Sequence]) -> Tensor:
        """Puts the rows' pasts before their prompts, in place; gives (rows,) the position after each prompt."""
        mask = prepared["attention_mask"]
        tokens = mask.shape[1]
        begun = self.pool.past([s.served for s in new])
        if begun is not None:
            prepared["past_key_values"], visible = begun
            mask = prepared["attention_mask"] = torch.cat([visible.to(mask.dtype), mask], dim=1)
            if "position_ids" in prepared:
                prepared["position_ids"] = prepared["position_ids"] + visible.sum(-1, keepdim=True)
        if self._takes_positions and "position_ids" not in prepared:
            prepared["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
        after: Tensor = prepared["position_ids"][:, -1] + 1 if "position_ids" in prepared else mask.sum(-1)
        return after

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row; rows that end leave."""
        if not self.rows:
            return
        device = self.pool.backbone.device
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        # Before the pass: the new token attends to itself, so its place must be visible in the mask that the pass gets.
        self._visible = functional.pad(self._visible, (0, 1), value=1)
        prepared: dict[str, Any] = {"input_ids": ids, "attention_mask": self._visible}
        if self._takes_positions:
            prepared["position_ids"] = self._positions[:, None]
        prepared["past_key_values"] = self._cache
        if self._route is None:
            self._route = self.pool.assignments([row.served for row in self.rows], prompts=False)
            self._decode_cache = DecodeCache()
        attached = self.pool.attached
        with attached.routed(*self._route, batch_rows=len(self.rows)):
            state = tell_edits(attached.state, attached.anatomy, None)  # a written token is not part of a prompt
            logits, _ = self._run(prepared, state, self._decode_cache)
        # After the pass: positions are those of the next token.
        self._positions = self._positions + 1
        self._take(logits, self.rows)
        self.leave()

    def _run(
        self, prepared: dict[str, Any], state: PassState, decode_cache: DecodeCache, everywhere: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits of the last place (rows, vocabulary), or (rows, places, vocabulary) of all, and the cache."""
        attached = self.pool.attached
        state = replace(state, decode_cache=decode_cache, captured_inputs={})

        def last_place(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args if everywhere else (args[0][:, -1:], *args[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(last_place)
        try:
            with attached.under(state), attached.exclusive_values():
                output = self.model(**prepared, use_cache=True)
        finally:
            handle.remove()
        return output.logits if everywhere else output.logits[:, -1], output.past_key_values

    def _take(self, logits: Tensor, rows: list[Sequence]) -> None:
        greedy_ids = logits.argmax(-1, keepdim=True)
        greedy = greedy_ids[:, 0].tolist()
        # argmax takes a NaN for the largest value, so one look at what it chose tells of every NaN in the row.
        finite = logits.gather(-1, greedy_ids)[:, 0].isfinite().tolist()
        for index, row in enumerate(rows):
            if not finite[index]:
                row.finish("not_finite")
                continue
            try:
                if row.sampling.max_tokens == 0:  # only the prompt is asked about
                    row.finish("length")
                    continue
                token = greedy[index] if row.sampling.plain else row.choose(logits[index], self.end_tokens)
                row.append(token, self.end_tokens, logits[index])
            except Exception:  # one row's settings must not end the others' answers
                log.exception("a row failed")
                row.finish("error")

    def _append(
        self, new: list[Sequence], pairs: list[tuple[Tensor, Tensor]], visible: Tensor, positions: Tensor
    ) -> None:
        """Puts rows into the batch, in the pool's order."""
        if self.rows:
            longest = max(self._visible.shape[1], visible.shape[1])

            def joined(own: Tensor, other: Tensor) -> Tensor:
                return torch.cat([functional.pad(t, (0, 0, longest - t.shape[2], 0)) for t in (own, other)])

            both = zip(pairs_of(self._cache), pairs, strict=True)
            pairs = [(joined(own[0], other[0]), joined(own[1], other[1])) for own, other in both]
            visible = torch.cat([functional.pad(t, (longest - t.shape[1], 0)) for t in (self._visible, visible)])
            positions = torch.cat([self._positions, positions])
        self.rows = [*self.rows, *new]
        self._visible, self._positions = visible, positions
        self._select(self.pool.order([row.served for row in self.rows]), pairs)

    def leave(self) -> None:
        """Takes out rows that have ended."""
        stay = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(stay) < len(self.rows):
            self._select(stay, pairs_of(self._cache))

    def _select(self, indices: list[int], pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Keeps some rows, in an order, and cuts off places that none of them has."""
        # Rows changed, and with them which row belongs to which adapter.
        self._route = None
        self.rows = [self.rows[index] for index in indices]
        if not self.rows:
            self._cache = cache_of([])
            self._visible, self._positions = self._visible[:0, :0], self._positions[:0]
            return
        chosen = torch.tensor(indices, device=self._visible.device)
        visible = self._visible[chosen]
        # When the longest row leaves, places that only it had are padding for all: cutting them off makes every later step
        # cheaper.
        start = int(visible.any(dim=0).int().argmax())
        self._visible, self._positions = visible[:, start:], self._positions[chosen]
        moved = [(chosen.to(keys.device), keys, values) for keys, values in pairs]  # layers may lie on several devices
        self._cache = cache_of([(keys[own, :, start:], values[own, :, start:]) for own, keys, values in moved])


class WholeBatch(RunningBatch):
    """Encoder-decoders: the rows that wait are answered as one batch, mixed but from beginning to end, greedily."""

    @torch.inference_mode()
    def join(self, sequences: list[Sequence]) -> None:
        new = [sequences[i] for i in self.pool.order([s.served for s in sequences])]
        pad = self.pool.backbone.processor.pad_token_id or 0
        inputs: dict[str, Any] = collate_prompts(
            [Encoded("", s.prompt) for s in new], pad, left=False, device=self.pool.backbone.device
        )
        # All rows run as long as the longest may; a shorter row's surplus tokens are dropped below.
        longest = max(s.sampling.max_tokens for s in new)
        attached = self.pool.attached
        with attached.routed(*self.pool.assignments([s.served for s in new]), batch_rows=len(new)):
            tokens = attached.generate(**inputs, max_new_tokens=longest, do_sample=False, num_beams=1, pad_token_id=pad)
        for row, written in zip(new, tokens[:, 1:].tolist(), strict=True):  # the first is the start token
            for token in written:
                row.append(token, self.end_tokens)
                if row.finished is not None:
                    break
            row.finish("length")
