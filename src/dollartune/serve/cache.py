"""Keys and values of a running batch: places in buffers with room for more, and what adapters put before every prompt.

    buffer   [ past | prompt | written . . . | room ]      a step writes one place; nothing that is there is copied
             [       room for another row           ]      rows that come or go copy themselves, and at most a few others

Virtual tokens and prefixes stand before the prompt and do not see it, so their keys and values are the same for every
request of an adapter: they are computed once, when it is added, and a prompt is read after them as after a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dollartune.attachment.attention import prefix_cache
from dollartune.backbones.device_map import execution_devices, home_device
from dollartune.backbones.kind import has_window

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.attachment.attached import Attached

ROOM = 32
"""Places by which a buffer grows at least."""
_MUCH_SHORTER = 4
"""Rows that have so much fewer places than the longest are copied by themselves."""


class Places(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values (rows, heads, places, head_size), as the written part of larger buffers.

    Args:
        room: how many of the last places are free, where these tensors are to be the buffers; else they are copied into such.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int = 0) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        if room:
            self._buffers = [keys, values]
            self._show(keys.shape[0], 0, keys.shape[2] - room)
        else:
            self._hold(keys, values)

    def _hold(self, keys: Tensor, values: Tensor, before: int = 0, more_rows: int = 0) -> None:
        """Copies what is there into buffers of its own, with so many places before it and so many rows behind it."""
        room = room_after(keys.shape[2])
        self._buffers = [functional.pad(t, (0, 0, before, room, 0, 0, 0, more_rows)) for t in (keys, values)]
        self._show(keys.shape[0], before, before + keys.shape[2])

    def _show(self, rows: int, start: int, stop: int) -> None:
        """The written part: so many rows, and places from `start` to `stop`."""
        self._start, self._stop = start, stop
        self.keys, self.values = (buffer[:rows, :, start:stop] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds places (rows, heads, new, head_size); gives all keys and values."""
        rows, stop = self.keys.shape[0], self._stop + key_states.shape[2]
        if stop > self._buffers[0].shape[2]:
            spare = min(self._buffers[0].shape[0] - rows, rows // 4)
            keys, values = (torch.cat(t, dim=2) for t in ((self.keys, key_states), (self.values, value_states)))
            self._hold(keys, values, more_rows=spare)
        else:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:rows, :, self._stop : stop] = states
            self._show(rows, self._start, stop)
        return self.keys, self.values

    def add_rows(self, keys: Tensor, values: Tensor) -> None:
        """Puts rows behind those that are there. All end at the last place; places that a row lacks before are another row's."""
        before, new, places = self.keys.shape[0], keys.shape[0], keys.shape[2]
        rows = before + new
        if rows > self._buffers[0].shape[0] or places > self._stop:
            self._hold(self.keys, self.values, max(0, places - self.keys.shape[2]), new + rows // 4)
        first = self._stop - places
        for buffer, added in zip(self._buffers, (keys, values), strict=True):
            buffer[before:rows, :, first : self._stop] = added
        self._show(rows, min(self._start, first), self._stop)

    def arrange(self, order: Sequence[int], cut: int, lengths: Sequence[int]) -> None:
        """Keeps some rows and cuts places off at the beginning; only rows that change their place are copied, and of short ones
        no more than they have.

        Args:
            order: for each row from now on, which of those that are there it is.
            cut: places that no row has any more.
            lengths: how many of the last places each row from now on has. What is before them stays another row's: it is
                hidden, and finite as long as rows that were not are cleared.
        """
        moved = [place for place, row in enumerate(order) if place != row]
        short = max(lengths, default=0) // _MUCH_SHORTER
        by_size = [p for p in moved if lengths[p] <= short], [p for p in moved if lengths[p] > short]
        copies = [
            (
                self._stop - max(lengths[place] for place in to),
                torch.tensor([order[place] for place in to], device=self.device),
                torch.tensor(to, device=self.device),
            )
            for to in by_size
            if to
        ]
        for buffer in self._buffers:
            # All is read before anything is written: one may stand where another is to come.
            read = [buffer[:, :, first : self._stop].index_select(0, of) for first, of, _ in copies]
            for (first, _, to), content in zip(copies, read, strict=True):
                buffer[:, :, first : self._stop].index_copy_(0, to, content)
        self._show(len(order), self._start + cut, self._stop)

    def clear(self, rows: Sequence[int]) -> None:
        """Takes out what is not finite: hidden places are multiplied by 0, and their NaN would not be."""
        for buffer in self._buffers:
            buffer[list(rows)] = 0


def room_after(places: int) -> int:
    """Free places of a buffer that begins with so many."""
    # A quarter more each time, as a growing list does it: copying stays proportional to what is written. At least 32 places, or
    # short prompts would copy at every few tokens.
    return max(ROOM, places // 4)


def cache_of(pairs: Sequence[tuple[Tensor, Tensor]], room: int = 0) -> DynamicCache:
    """A cache that begins with these keys and values, one pair per layer; `room` as `Places` takes it."""
    cache = DynamicCache()
    cache.layers = [Places(keys, values, room) for keys, values in pairs]
    return cache


def pairs_of(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Every layer's keys and values."""
    return [(layer.keys, layer.values) for layer in cache.layers]


@dataclass(frozen=True)
class Past:
    """What an adapter puts before every prompt. Shapes (layers, heads, places, head_size)."""

    keys: Tensor
    values: Tensor


@torch.inference_mode()
def past_of(attached: Attached, adapter: Adapter) -> Past | None:
    """The keys and values of an attached adapter's virtual tokens and prefixes; None where it has none, or where they must
    be put in at every pass: gated prefixes, prefixes in some layers only, families with sliding windows or attention code
    of their own, layers on several devices."""
    anatomy, config = attached.anatomy, attached.model.config
    if anatomy.kind != "decoder" or not (adapter.virtual or adapter.prefixes):
        return None
    if attached.placed and len(execution_devices(attached.model)) > 1:
        return None
    if not anatomy.family.attention_interface or not anatomy.rows_join or has_window(config):
        return None
    sites = sorted(anatomy.at("self_attn.core"), key=lambda site: site.layer or 0)
    edits = [[edit for _, edit in adapter.prefixes.get(site.exit, [])] for site in sites]
    if len({sum(e.length for e in own) for own in edits}) > 1 or any(e.gate is not None for own in edits for e in own):
        return None
    name = next(name for name, other in attached.adapters.items() if other is adapter)
    pairs = []
    with attached.routed(name, batch_rows=1):
        if adapter.prefixes:
            pairs.append(pairs_of(prefix_cache(attached, 1)[0]))
        if length := sum(edit.length for edit in adapter.virtual.get("decoder", [])):
            # A pass needs a token; its own place comes after the virtual ones and is cut off.
            token = torch.zeros(1, 1, dtype=torch.long, device=home_device(attached.model))
            cache = attached(input_ids=token, attention_mask=torch.ones_like(token), use_cache=True).past_key_values
            pairs.append([(keys[:, :, :length], values[:, :, :length]) for keys, values in pairs_of(cache)])
    layers = [[torch.cat(parts, dim=2)[0] for parts in zip(*layer, strict=True)] for layer in zip(*pairs, strict=True)]
    if len({keys.shape for keys, _ in layers}) > 1:
        return None
    return Past(*(torch.stack(tensors) for tensors in zip(*layers, strict=True)))


def joined(first: DynamicCache, then: DynamicCache) -> DynamicCache:
    """The places of one cache and then those of another, of the same rows."""
    pairs = zip(pairs_of(first), pairs_of(then), strict=True)
    return cache_of(
        [(torch.cat([k, more_k], dim=2), torch.cat([v, more_v], dim=2)) for (k, v), (more_k, more_v) in pairs]
    )


def rows_past(pasts: Sequence[Past | None]) -> tuple[DynamicCache, Tensor] | None:
    """The cache that rows begin with, shorter pasts padded on the left, and (rows, places) which places a row really has;
    None if no row has a past."""
    some = next((past for past in pasts if past is not None), None)
    if some is None:
        return None
    longest = max(past.keys.shape[2] for past in pasts if past is not None)
    layers, heads, _, size = some.keys.shape
    room = room_after(longest)
    keys, values = (some.keys.new_zeros(layers, len(pasts), heads, longest + room, size) for _ in range(2))
    visible = torch.zeros(len(pasts), longest, dtype=torch.long, device=some.keys.device)
    start = 0
    while start < len(pasts):
        past, stop = pasts[start], start + 1
        while stop < len(pasts) and pasts[stop] is past:
            stop += 1
        if past is not None:
            first = longest - past.keys.shape[2]
            keys[:, start:stop, :, first:longest] = past.keys[:, None]
            values[:, start:stop, :, first:longest] = past.values[:, None]
            visible[start:stop, first:] = 1
        start = stop
    return cache_of(list(zip(keys, values, strict=True)), room), visible
