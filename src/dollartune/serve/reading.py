"""Prompts of rows that join together, read in pieces between the steps of the rows that generate.

tokens   [ . . . . row 0 ]      padded on the left; a piece is some columns of all rows
         [ row 1 . . . . ]
         |---|---|---|---|      each goes on from the keys and values of the last
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from dollartune.attachment.fast.decode_cache import DecodeCache
from dollartune.attachment.fast.last_layer_rows import only_read_rows
from dollartune.attachment.inputs import prepare_inputs, tell_edits
from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.kind import has_window
from dollartune.backbones.token_table import output_head
from dollartune.serve.beginnings import reads_each_token
from dollartune.serve.cache import Past, joined, rows_past
from dollartune.train.encoding import Encoded, collate_prompts

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.attachment.pass_state import PassState
    from dollartune.serve.pool import Pool, Served


_PROMPT = 8
"""Tokens from which a pass is worth the hooks that leave places out; steps have one."""


class Asked(Protocol):
    """What is known of a row before its prompt is read."""

    @property
    def served(self) -> Served | None: ...

    @property
    def prompt(self) -> tuple[int, ...]: ...

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits at every place of the prompt are needed."""
        ...


AskedT = TypeVar("AskedT", bound=Asked)


def run_pass(
    attached: Attached, prepared: dict[str, Any], state: PassState, decode_cache: DecodeCache, everywhere: bool = False
) -> tuple[Tensor, Any]:
    """Logits of the last place (rows, vocabulary), or (rows, places, vocabulary) of all, and the cache."""
    model: Any = attached.model
    state = replace(state, decode_cache=decode_cache, captured_inputs={})

    def last_place(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Logits of every place would be the largest tensor of the pass, and those of one are read.
        return args if everywhere else (args[0][..., -1:, :], *args[1:])

    head = output_head(model)
    assert head is not None  # it writes text
    handle = head.register_forward_pre_hook(last_place)
    caching = {"use_cache": attached.anatomy.family.generates} if takes(model, "use_cache") else {}
    try:
        with attached.under(state), attached.exclusive_values(), _last_layer_there(attached, prepared, everywhere):
            output = model(**prepared, **caching)
    finally:
        handle.remove()
    return output.logits if everywhere else output.logits[:, -1], getattr(output, cache_input(model), None)


def _last_layer_there(
    attached: Attached, prepared: dict[str, Any], everywhere: bool
) -> AbstractContextManager[None, bool | None]:
    """Within the block, the last layer computes of a prompt what the last place needs."""
    if everywhere or attached.last_layer is None:
        return nullcontext()
    tokens = prepared["inputs_embeds" if "inputs_embeds" in prepared else "input_ids"]
    rows, places = tokens.shape[:2]
    if places < _PROMPT:
        return nullcontext()
    row = torch.arange(rows, device=tokens.device)
    return only_read_rows(attached, attached.last_layer, (row, torch.full_like(row, places - 1)))


def cache_input(model: Any) -> str:
    """The name by which a model takes and gives what it keeps from token to token: keys and values, or Mamba's and RWKV's
    states."""
    known = (name for name in ("past_key_values", "cache_params", "state") if takes(model, name))
    return next(known, "past_key_values")


class Reading(Generic[AskedT]):
    """Prompts on their way into a batch.

    Args:
        pool: gives the backbone, the routes and what prompts may begin with.
        sequences: whose prompts they are.
    """

    @torch.inference_mode()
    def __init__(self, pool: Pool, sequences: Seq[AskedT]) -> None:
        self.pool = pool
        self.rows = [sequences[i] for i in pool.order([s.served for s in sequences])]
        self.everywhere = any(row.scores_prompt for row in self.rows)
        window = has_window(pool.backbone.model.config)
        self._in_pieces = not self.everywhere and not window and all(reads_each_token(r.served) for r in self.rows)
        begun = [self._beginning(row) for row in self.rows]
        pad = pool.backbone.processor.pad_token_id or 0
        inputs: dict[str, Any] = collate_prompts(
            [Encoded("", row.prompt[length:]) for row, (length, _) in zip(self.rows, begun, strict=True)],
            pad,
            left=True,
            device=pool.backbone.device,
        )
        self._route = pool.assignments([row.served for row in self.rows])
        with pool.attached.routed(*self._route, batch_rows=len(self.rows)):
            ready = prepare_inputs(pool.attached, inputs, None)
        self._prepared, self._state = ready.inputs, ready.state
        self.positions = self._begin([past for _, past in begun])
        if window and "past_key_values" not in self._prepared:
            # The family's own cache drops what left the window, counted in places: rows that are padded by different
            # amounts have lost different tokens when others join them. This one keeps all; the mask is the window.
            self._prepared["past_key_values"] = DynamicCache()
        self._tokens = self._prepared["inputs_embeds" if "inputs_embeds" in self._prepared else "input_ids"].shape[1]
        self._read = 0
        self._decode_cache = DecodeCache()
        self.logits: Tensor | None = None
        """Of the last place, or of every place where a row scores its prompt; None until all is read."""
        self.cache: Any = None

    @property
    def visible(self) -> Tensor:
        """(rows, places): which places of the cache a row really has."""
        mask: Tensor = self._prepared["attention_mask"]
        return mask.long()

    def _beginning(self, row: AskedT) -> tuple[int, Past | None]:
        """How many of a prompt's tokens are known, and what its row begins with."""
        own = row.served.past if row.served is not None else None
        if row.scores_prompt or not self.pool.beginnings.takes(row.served):
            return 0, own
        length, past = self.pool.beginnings.find(row.served, row.prompt)
        self.pool.beginnings.tokens_spared += length
        return length, past or own

    def _begin(self, pasts: list[Past | None]) -> Tensor:
        """Puts the rows' pasts before their prompts; gives (rows,) the position after each prompt."""
        prepared = self._prepared
        mask = prepared["attention_mask"]
        tokens = mask.shape[1]
        begun = rows_past(pasts)
        if begun is not None:
            before, visible = begun
            # Prefixes of a family whose attention is code of its own are a cache already; whoever has one begins with
            # nothing else, and the mask shows each row its own.
            prefixes = prepared.get("past_key_values")
            prepared["past_key_values"] = before if prefixes is None else joined(before, prefixes)
            mask = prepared["attention_mask"] = torch.cat([visible.to(mask.dtype), mask], dim=1)
            if "position_ids" in prepared:
                prepared["position_ids"] = prepared["position_ids"] + visible.sum(-1, keepdim=True)
        if takes(self.pool.backbone.model, "position_ids") and "position_ids" not in prepared:
            # Padding before a row's first token would have place -1, which a table of positions lacks.
            prepared["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
        after: Tensor = prepared["position_ids"][:, -1] + 1 if "position_ids" in prepared else mask.sum(-1)
        return after

    @torch.inference_mode()
    def go_on(self, most: int) -> int:
        """Reads the next columns, at most so many tokens in all rows; gives the tokens read. `logits` are there at the end."""
        rows = len(self.rows)
        start = self._read
        # A column at least: where there are more rows than tokens asked for, nothing would ever be read.
        stop = min(self._tokens, start + max(1, most // rows)) if self._in_pieces else self._tokens
        before = self._prepared["attention_mask"].shape[1] - self._tokens
        piece = dict(self._prepared)
        for name in ("input_ids", "inputs_embeds", "position_ids"):
            if name in piece:
                piece[name] = piece[name][:, start:stop]
        piece["attention_mask"] = piece["attention_mask"][:, : before + stop]
        if self.cache is not None:
            piece["past_key_values"] = self.cache
        attached = self.pool.attached
        with attached.routed(*self._route, batch_rows=rows):
            whole = (start, stop) == (0, self._tokens)
            # In a piece the prompt's mask would have other columns; edits that look at it are read whole.
            state = self._state if whole else tell_edits(self._state, attached.anatomy, None)
            logits, self.cache = run_pass(attached, piece, state, self._decode_cache, self.everywhere)
        self._read = stop
        if stop == self._tokens:
            self.logits = logits
        return int(rows * (stop - start))
