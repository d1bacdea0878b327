"""The running batch of a decoder: rows join and leave between steps; each row's keys and values are kept.

    cache    [ ......... | row 0: 31 places ]      padding on the left, so that all rows write their next place at the end
             [ row 1:        57 places      ]
             [ ....... | row 2: 40 places   ]
    a step   one token per row under a route that gives each row its adapter

Virtual tokens and prefixes are places of the cache, computed once per adapter (`cache.past_of`). The exceptions are prefixes
with gates, in some layers only, or in families with sliding windows: they are put before keys and values at every step.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.exact_head import exact_head, exact_likeliest
from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.inputs import tell_edits
from dollartune.backbones.forward_inputs import takes
from dollartune.serve.cache import cache_of, pairs_of
from dollartune.serve.constraint import TooComplex
from dollartune.serve.reading import Reading, run_pass

if TYPE_CHECKING:
    from dollartune.attachment.stacking import RunningRows
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
        self.reading: Reading[Sequence] | None = None
        """Rows whose prompts are being read."""
        self._cache = cache_of([])
        self._visible = torch.zeros(0, 0, dtype=torch.long, device=pool.backbone.device)
        """(rows, places): which places of the cache a row really has."""
        self._positions = torch.zeros(0, dtype=torch.long, device=pool.backbone.device)
        """(rows,) position of each row's next token."""
        self._route: list[Any] | None = None
        self._running: dict[int, RunningRows] = {}
        """Group of adapters -> what the route has of it."""
        self._decode_cache = DecodeCache()

    @property
    def waits(self) -> list[Sequence]:
        """Rows whose prompts are being read."""
        return self.reading.rows if self.reading is not None else []

    @property
    def holds(self) -> list[Sequence]:
        """Rows that generate or are read."""
        return [*self.rows, *self.waits]

    def begin(self, sequences: list[Sequence]) -> None:
        """Begins to read the prompts of new rows, which join when all is read."""
        self.reading = Reading(self.pool, sequences)

    def read(self, most: int) -> int:
        """Reads on, at most so many tokens; rows that are read get their first token, and those that go on join the batch.

        Returns:
            tokens read, padding included.
        """
        reading = self.reading
        if reading is None:
            return 0
        if all(row.finished is not None for row in reading.rows):  # everybody left meanwhile
            self.reading = None
            return 0
        exact = exact_head if reading.everywhere else exact_likeliest
        with exact(self.pool.attached):
            tokens = reading.go_on(most)
        if reading.logits is not None:
            self.reading = None
            self._join(reading, reading.logits)
        elif self.pool.backbone.device.type == "cuda":
            # Nothing of a piece in the middle is looked at: unless it is waited for, it seems to take no time, and the next
            # one is made twice as large.
            torch.cuda.synchronize(self.pool.backbone.device)
        return tokens

    @torch.inference_mode()
    def _join(self, reading: Reading[Sequence], logits: Tensor) -> None:
        new, pairs, visible = reading.rows, pairs_of(reading.cache), reading.visible
        if reading.everywhere:
            for row, sequence in enumerate(new):
                if sequence.scores_prompt:
                    # Padding and virtual tokens come before a prompt, so that its places are the last ones.
                    sequence.score_prompt(logits[row, -len(sequence.prompt) :])
            logits = logits[:, -1]
        for row, sequence in enumerate(new):
            self.pool.beginnings.keep(sequence.served, sequence.prompt, pairs, row, visible[row])
        self._take(logits, new)
        # Rows whose first token was their last never enter the batch: a long prompt would make every row's buffers longer.
        going = [row for row, sequence in enumerate(new) if sequence.finished is None]
        if len(going) == len(new):
            self._append(new, pairs, visible, reading.positions)
        elif going:
            cut = int(visible[going].any(dim=0).int().argmax())
            kept = [(keys[going, :, cut:], values[going, :, cut:]) for keys, values in pairs]
            self._append([new[row] for row in going], kept, visible[going, cut:], reading.positions[going])
        self.leave()

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row; rows that end leave."""
        if not self.rows:
            return
        device = self.pool.backbone.device
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        # Before the pass: the new token attends to itself, so its place must be visible in the mask that the pass gets.
        self._visible = functional.pad(self._visible, (0, 1), value=1)
        prepared: dict[str, object] = {"input_ids": ids, "attention_mask": self._visible}
        if takes(self.pool.backbone.model, "position_ids"):
            prepared["position_ids"] = self._positions[:, None]
        prepared["past_key_values"] = self._cache
        if self._route is None:
            self._decode_cache = DecodeCache()  # first, as the old one holds tensors of the old route
            served = [row.served for row in self.rows]
            self._route = self.pool.assignments(served, prompts=False, running=self._running)
        attached = self.pool.attached
        with attached.routed(*self._route, batch_rows=len(self.rows)), exact_likeliest(attached):
            state = tell_edits(attached.state, attached.anatomy, None)  # a written token is not part of a prompt
            logits, _ = run_pass(attached, prepared, state, self._decode_cache)
        # After the pass: positions are those of the next token.
        self._positions = self._positions + 1
        self._take(logits, self.rows)
        self.leave()

    def _take(self, logits: Tensor, rows: list[Sequence]) -> None:
        greedy_ids = logits.argmax(-1, keepdim=True)
        greedy = greedy_ids[:, 0].tolist()
        # argmax takes a NaN for the largest value, so one look at what it chose tells of every NaN in the row.
        finite = logits.gather(-1, greedy_ids)[:, 0].isfinite().tolist()
        for index, row in enumerate(rows):
            if row.finished is not None:  # its client left while the prompt was read
                continue
            if not finite[index]:
                row.finish("not_finite")
                continue
            try:
                if row.sampling.max_tokens == 0:  # only the prompt is asked about
                    row.finish("length")
                    continue
                token = greedy[index] if row.sampling.plain else row.choose(logits[index], self.end_tokens)
                row.append(token, self.end_tokens, logits[index])
            except TooComplex as error:
                log.warning("a grammar is too complex: %s", error)
                row.finish("too_complex")
            except Exception:  # one row's settings must not end the others' answers
                log.exception("a row failed")
                row.finish("error")

    def _append(
        self, new: list[Sequence], pairs: list[tuple[Tensor, Tensor]], visible: Tensor, positions: Tensor
    ) -> None:
        """Puts rows into the batch."""
        if self.rows:
            for layer, own in zip(self._cache.layers, pairs, strict=True):
                layer.add_rows(*own)
            longest = max(self._visible.shape[1], visible.shape[1])
            visible = torch.cat([functional.pad(t, (longest - t.shape[1], 0)) for t in (self._visible, visible)])
            positions = torch.cat([self._positions, positions])
        else:
            self._cache = cache_of(pairs)
        self.rows = [*self.rows, *new]
        self._visible, self._positions = visible, positions
        self._route = None

    def _forget_route(self) -> None:
        """Where no row is left: what a route holds would stay until another row comes, with adapters that are gone by then."""
        self._route, self._running, self._decode_cache = None, {}, DecodeCache()

    def leave(self) -> None:
        """Takes out rows that have ended; those of adapters that are computed together lie together afterwards."""
        stay = [index for index, row in enumerate(self.rows) if row.finished is None]
        order = self.pool.arranged([row.served for row in self.rows], stay)
        if order != list(range(len(self.rows))):
            self._arrange(order)

    @torch.inference_mode()
    def _arrange(self, order: list[int]) -> None:
        """Keeps some rows, in an order, and cuts off places that none of them has."""
        # Rows changed, and with them which row belongs to which adapter.
        self._route = None
        if broken := [index for index, row in enumerate(self.rows) if row.finished == "not_finite"]:
            for layer in self._cache.layers:
                layer.clear(broken)
        self.rows = [self.rows[index] for index in order]
        if not self.rows:
            self._cache = cache_of([])
            self._visible, self._positions = self._visible[:0, :0], self._positions[:0]
            self._forget_route()
            return
        chosen = torch.tensor(order, device=self._visible.device)
        visible = self._visible[chosen]
        # When the longest row leaves, places that only it had are padding for all: cutting them off makes every later step
        # cheaper.
        cut = int(visible.any(dim=0).int().argmax())
        lengths = (visible.shape[1] - visible.int().argmax(dim=1)).tolist()
        self._visible, self._positions = visible[:, cut:], self._positions[chosen]
        for layer in self._cache.layers:
            layer.arrange(order, cut, lengths)
