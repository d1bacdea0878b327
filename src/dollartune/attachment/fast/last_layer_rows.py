"""The last layer computes only what is read: positions whose logits are asked for, or the one that a classifier reads.

    (rows, tokens, d) ─┬─> k, v of all tokens ─┬─> attention ─> o ─> + ─> norm ─> up ─> act ─> down ─> + ─> norm ─> head
                       └─────> q at places ────┘  at places                   └──── at places ────┘

Keys and values need every token; all else at a place depends on that place alone, and nobody reads the other ones. They
are left out where a linear of the attention or the feed-forward begins, and put back as zeros where it ends, so that
everything between keeps its shape. Exact: with its gradients, the result at the places is what it was.

With one answer token per row this saves ten twelfths of a layer, forwards and backwards. The plain pass is the reference;
`tests/attachment/fast/test_last_layer_rows.py` holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.batch_layout import Layout
from dollartune.attachment.fast.cpu_attention import READ

if TYPE_CHECKING:
    from dollartune.attachment.pass_state import PassState
    from dollartune.attachment.routed_model import RoutedModel
    from dollartune.backbones.anatomy import Anatomy

_GAIN = 2
"""How many times fewer places than tokens there must be: picking them costs something too."""


@dataclass(frozen=True)
class LastLayer:
    """Names of the modules of a backbone's last layer between which only some places are needed."""

    core: str
    query: str | None
    """None where one linear gives queries, keys and values."""
    output: str
    """Of the attention."""
    enters: tuple[str, ...]
    leaves: str
    """Of the feed-forward: its gate and up projection; its down projection."""

    @classmethod
    def of(cls, anatomy: Anatomy, config: Any) -> LastLayer | None:
        """None for backbones whose last layer's other places are read too, or whose inside is not known."""
        family = anatomy.family
        if anatomy.kind == "encoder_decoder" or family.guessed or getattr(config, "chunk_size_feed_forward", None):
            return None  # what a decoder on an encoder reads is the answer, every place of it
        (name, stack), *_ = family.stacks.items()
        last = {
            site.role: site
            for site in anatomy.sites
            if site.stack == name and site.layer == anatomy.layer_counts[name] - 1
        }
        if stack.recurrent or not {"self_attn.core", "self_attn.o", "mlp.up", "mlp.down"} <= last.keys():
            return None
        enters = tuple(last[role].entry for role in ("mlp.gate", "mlp.up") if role in last)
        q = last.get("self_attn.q")
        query = q.entry if q is not None and q.part is None else None
        return cls(last["self_attn.core"].exit, query, last["self_attn.o"].exit, enters, last["mlp.down"].exit)


class LastLayerRows:
    """One pass whose last layer computes some places alone.

    Args:
        keep: (row, position) of what is read; None: the first place of every row.
    """

    def __init__(self, attached: RoutedModel, last: LastLayer, keep: tuple[Tensor, Tensor] | None) -> None:
        self.attached, self.last, self.keep = attached, last, keep
        self._positions: dict[tuple[int, int], Tensor | None] = {}
        self._now: Tensor | None = None
        self._tokens = 0
        """Of the module's input before positions were picked."""
        self._outside: PassState | None = None
        """What the module at which positions were picked began under."""

    @property
    def possible(self) -> bool:
        """Whether every edit inside the feed-forward takes each token for itself."""
        return all(self._takes_each_token(name) for name in (*self.last.enters, self.last.leaves))

    def places(self, rows: int, tokens: int, device: torch.device) -> Tensor | None:
        """(rows, n) places to compute in a batch of (rows, tokens), all of one row different: first those that are read,
        in order; then, in rows that have fewer than others, any. None where that would save too little."""
        if (rows, tokens) not in self._positions:
            self._positions[rows, tokens] = self._choose(rows, tokens, device)
        return self._positions[rows, tokens]

    def _choose(self, rows: int, tokens: int, device: torch.device) -> Tensor | None:
        if self.keep is None:
            # a classifier reads its class token, the first of every row
            return torch.zeros(rows, 1, dtype=torch.long, device=device) if tokens >= _GAIN else None
        most = (self.attached.state.layout or Layout.of({}, self.keep)).most_read
        if not most or most * _GAIN > tokens:
            return None
        # a stable sort puts read positions first and keeps their order, without waiting for a GPU to count them
        unread = torch.ones(rows, tokens, dtype=torch.bool, device=device)
        unread.index_put_(tuple(index.to(device) for index in self.keep), unread.new_zeros(()))
        return unread.int().argsort(dim=1, stable=True)[:, :most]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within the block, passes of the backbone compute the last layer there alone."""
        model, last, attached = self.attached.model, self.last, self.attached
        core = model.get_submodule(last.core)
        # query and output narrow what enters and what leaves, as keys and values between them need every token
        both = [name for name in (last.query, last.output) if name is not None and self._takes_each_token(name)]
        picked, spread = {*last.enters, *both}, {last.leaves, *both}
        handles = []
        for name in picked | spread:
            module = model.get_submodule(name)
            before_it, after_it = (
                attached.sealed(hook) for hook in (self._entering(name in picked), self._leaving(name in spread))
            )
            # before and after our edits' own hooks, so that edits see the picked positions alone
            handles.append(module.register_forward_pre_hook(before_it, prepend=True))
            handles.append(module.register_forward_hook(after_it))
        # Past nn.Module's own __setattr__, and an attribute and not an argument: transformers' attention interface
        # hands on no other.
        object.__setattr__(core, READ, self.places)
        try:
            with attached.changed(last_layer=self):
                yield
        finally:
            core.__dict__.pop(READ, None)
            for handle in handles:
                handle.remove()

    def _takes_each_token(self, name: str) -> bool:
        """Whether nothing that sits at a module needs more than the places of its input and output."""
        for assignment in self.attached.state.route:
            inputs, outputs = (getattr(assignment.adapter, where, {}).get(name, ()) for where in ("inputs", "outputs"))
            # ReFT and gates look at other tokens of the row
            if any(not edit.each_token for _, edit in (*inputs, *outputs)):
                return False
            if name == self.last.output and any(site.kind == "sublayer" for site, _ in outputs):
                return False  # it acts on what left the attention with what entered it, which is there for every token
            if name == self.last.query and name in getattr(assignment.adapter, "captures", ()):
                return False  # this is where that entered
        return True

    # The hooks: edits of a module see the places alone, as if there were no others

    def _entering(self, picks: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            attached = self.attached
            x = attached.state.batched(args[0])
            if picks:
                self._tokens, self._now = x.shape[1], self.places(x.shape[0], x.shape[1], x.device)
            if self._now is None:
                return None
            self._outside = attached.state
            route = tuple(replace(a, context=replace(a.context, prompt_mask={}, start=0)) for a in self._outside.route)
            attached.continue_under(replace(self._outside, route=route))
            if not picks:
                return None
            chosen = x.gather(1, _index(self._now, x))  # (rows, n, features)
            return (chosen if args[0].dim() >= 3 else chosen.flatten(0, 1), *args[1:])

        return hook

    def _leaving(self, spreads: bool) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if self._now is None or self._outside is None:
                return None
            self.attached.continue_under(self._outside)
            self._outside = None  # it knows the pass's captured inputs, which must not live as long as this object
            if not spreads:
                return None
            y = self.attached.state.batched(output)
            # zeros, not what was there: it is the residual's addition that follows, and nobody reads the sum here
            whole = y.new_zeros(y.shape[0], self._tokens, y.shape[2]).scatter(1, _index(self._now, y), y)
            return whole if output.dim() >= 3 else whole.flatten(0, 1)

        return hook


def _index(positions: Tensor, like: Tensor) -> Tensor:
    """places (rows, n) for all features of a tensor (rows, any, features)."""
    return positions[:, :, None].expand(-1, -1, like.shape[2])


@contextmanager
def only_read_rows(attached: RoutedModel, last: LastLayer | None, keep: tuple[Tensor, Tensor] | None) -> Iterator[None]:
    """Within the block, the last layer computes only what `keep` names, where nobody reads more.

    Args:
        last: modules of the model's last layer.
        keep: (row, position) index tensors, where the head computes; None: everywhere, or whatever a classifier reads.
    """
    if attached.state.whole_last_layer or (keep is None and not _reads_first(attached)):
        last = None
    rows = LastLayerRows(attached, last, keep) if last is not None else None
    if rows is None or not rows.possible:
        yield
        return
    with rows.hooked():
        yield


def _reads_first(attached: RoutedModel) -> bool:
    """Whether the model is a classifier that reads the first place alone."""
    name = type(attached.model).__name__
    return attached.anatomy.family.class_token and name.endswith(
        ("ForSequenceClassification", "ForImageClassification")
    )
