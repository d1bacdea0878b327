"""Keys and values of prompts that were read: a prompt that begins as an earlier one of the same adapter starts from them.

    stored     [ past | be brief . question one ]
    new        [ past | be brief . | question two ]     only what differs is read

System texts, solved examples and earlier turns of a chat are the same in many prompts. In a causal model, keys and values of
a beginning depend on nothing after it, so they are those that reading it again would give, within rounding.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.backbones.kind import has_window
from dollartune.serve.cache import Past
from dollartune.serve.joining import common_length

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.serve.pool import Served

LEAST = 32
"""Equal tokens from which keys and values are kept and copied: fewer are read faster than they are looked up and padded."""


@dataclass(frozen=True, eq=False)
class _Stored:
    served: Served | None
    tokens: tuple[int, ...]
    before: int
    """Places of the adapter's own past, which stand before the tokens."""
    past: Past

    @property
    def bytes(self) -> int:
        return 2 * self.past.keys.numel() * self.past.keys.element_size()


class Beginnings:
    """Prompts that were read, the least used of them given up where they take too much memory.

    Args:
        backbone: whose prompts they are.
        most_bytes: of all keys and values that are kept; 0 keeps none.
    """

    def __init__(self, backbone: Backbone, most_bytes: int) -> None:
        # A family with windows drops what left them; where layers lie on several devices, a row's places are no one tensor.
        usable = backbone.kind == "decoder" and backbone.anatomy.rows_join and not has_window(backbone.model.config)
        self.most_bytes = most_bytes if usable else 0
        self._stored: OrderedDict[int, _Stored] = OrderedDict()
        self._in_order: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        """An adapter's prompts with their keys, sorted: whoever has most in common with a prompt stands beside its place."""
        self._bytes = 0
        self._token_bytes = 0
        """Of one token's keys and values, as the last prompt had them."""
        self.tokens_spared = 0
        """Tokens of prompts that were not read, since they were there."""

    def takes(self, served: Served | None) -> bool:
        """Whether prompts of an adapter can start from others'."""
        if not self.most_bytes:
            return False
        if served is None:
            return True
        adapter = served.adapter
        # Virtual tokens or prefixes that are no part of the cache, and edits that look at a prompt as a whole.
        if served.past is None and (adapter.virtual or adapter.prefixes):
            return False
        return reads_each_token(served)

    def fits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens would be kept."""
        # Before the first prompt no size is known, and none is too large; `keep` looks at the bytes themselves.
        return tokens >= LEAST and tokens * self._token_bytes <= self.most_bytes // 4

    def find(self, served: Served | None, prompt: tuple[int, ...]) -> tuple[int, Past | None]:
        """How many of a prompt's tokens are there, and what its row then begins with; the last token is always read."""
        if len(prompt) <= LEAST or not self._stored:
            return 0, None
        best, length = None, LEAST - 1
        own = self._in_order.get(id(served), [])
        # Two, of however many there are: a server may keep thousands that all begin with one system text.
        place = bisect_left(own, (prompt, 0))
        for _, key in own[max(0, place - 1) : place + 1]:
            # The last token is read whatever is known: its logits choose the first new one.
            common = min(common_length(self._stored[key].tokens, prompt), len(prompt) - 1)
            if common > length:
                best, length = key, common
        if best is None:
            return 0, None
        self._stored.move_to_end(best)
        stored = self._stored[best]
        stop = stored.before + length
        # Views: `rows_past` copies them into buffers of the row's own.
        return length, Past(stored.past.keys[:, :, :stop], stored.past.values[:, :, :stop])

    def known(self, served: Served | None, prompt: tuple[int, ...]) -> int:
        """How many of a prompt's tokens are there."""
        return self.find(served, prompt)[0]

    def wants(self, served: Served | None, prompt: tuple[int, ...]) -> bool:
        """Whether a prompt would be kept: most of it is not there yet."""
        new = self.takes(served) and self.fits(len(prompt))
        return new and self.known(served, prompt) < len(prompt) - LEAST

    def keep(
        self,
        served: Served | None,
        prompt: tuple[int, ...],
        pairs: Sequence[tuple[Tensor, Tensor]],
        row: int,
        places: Tensor,
    ) -> None:
        """Keeps a prompt that was just read.

        Args:
            pairs: each layer's keys and values (rows, heads, places, head_size).
            row: the prompt's row.
            places: (places,) which places that row really has.
        """
        if not self.wants(served, prompt):
            return
        first = pairs[0][0]
        if any(keys.shape != first.shape or keys.device != first.device for keys, _ in pairs):
            return
        # Not a slice: between an adapter's past and a prompt that is shorter than its neighbours' there is padding.
        real = places.nonzero()[:, 0].to(first.device)
        past = Past(*(torch.stack([pair[side][row][:, real] for pair in pairs]) for side in (0, 1)))
        stored = _Stored(served, prompt, past.keys.shape[2] - len(prompt), past)
        self._token_bytes = stored.bytes // past.keys.shape[2]
        if stored.before < 0 or stored.bytes > self.most_bytes // 4:  # one prompt must not push out all others
            return
        # By id, as `Served` has no hash; what is stored is held, so that nothing else gets its number.
        self._stored[id(stored)] = stored
        insort(self._in_order.setdefault(id(served), []), (prompt, id(stored)))
        self._bytes += stored.bytes
        while self._bytes > self.most_bytes:
            self._give_up(next(iter(self._stored)))

    def forget(self, served: Served | None) -> None:
        """Gives up an adapter's prompts."""
        for key in [key for key, stored in self._stored.items() if stored.served is served]:
            self._give_up(key)

    def _give_up(self, key: int) -> None:
        stored = self._stored.pop(key)
        self._bytes -= stored.bytes
        own = self._in_order[id(stored.served)]
        del own[bisect_left(own, (stored.tokens, key))]
        if not own:
            del self._in_order[id(stored.served)]


def reads_each_token(served: Served | None) -> bool:
    """Whether what an adapter does to a token depends on no other token, so that a prompt can be read in pieces."""
    if served is None:
        return True
    adapter = served.adapter
    return all(
        edit.each_token for sites in (adapter.inputs, adapter.outputs) for own in sites.values() for _, edit in own
    )
