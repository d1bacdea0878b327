"""Many adapters of one method in one batch at inference: their tensors are stacked, gathered by row, applied in one go.

    adapter 0: A (r, in)  ┐
    adapter 1: A (r, in)  ├─ stacked (adapters, r, in) ── gather by row ──> A (rows, r, in) ── the edit's own code
    adapter 2: A (r, in)  ┘

The edit runs once per module whatever the number of adapters, so the 32nd costs about what the first one does.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.errors import UserError
from dollartune.methods.edits import Edit, InputEdit, KeyValuePrefix, Override, Readout, VirtualTokens

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.anatomy import Site


@dataclass
class GatheredAdapter:
    """Adapters of single rows, in the shape in which a route takes an adapter."""

    inputs: dict[str, list[tuple[Site, InputEdit]]]
    outputs: dict[str, list[tuple[Site, Edit]]]
    captures: set[str]
    virtual: dict[str, list[VirtualTokens]]
    prefixes: dict[str, list[tuple[Site, KeyValuePrefix]]]
    methods: tuple[Any, ...]
    exclusive: list[tuple[Site, Override]] = field(default_factory=list)
    mixed_rows: bool = True
    readout: Readout | None = None

    @classmethod
    def of(cls, adapter: Adapter) -> GatheredAdapter:
        """One adapter for all of its rows."""
        return cls(
            adapter.inputs,
            adapter.outputs,
            adapter.captures,
            adapter.virtual,
            adapter.prefixes,
            adapter.methods,
            adapter.exclusive,
            adapter.mixed_rows,
            adapter.readout,
        )


_ALIGNED = 16
"""Numbers at whose multiples a tensor begins within a block: 64 bytes of fp32, a line of a processor's cache."""


_MOST_VIEWS = 64
"""Adapters of runs of rows that are kept, the latest ones: an object for each edit of each. A group in a batch of 64 rows has
between a few and some twenty rows, and begins at one of a few places."""


@dataclass(frozen=True)
class _Part:
    """Where one tensor of all adapters lies."""

    block: int
    start: int
    shape: torch.Size
    """Of one adapter's, as it lies in memory."""
    turned: bool
    """Whether that is its transpose. A product of one token with a matrix of its own for each row is as fast as it reads memory:
    with B (out, r) as it is trained, which is read in runs of r numbers, x Bᵀ takes several times as long as in runs of `out`."""

    def of(self, blocks: Sequence[Tensor]) -> Tensor:
        """(rows, ...), a view."""
        flat = blocks[self.block][:, self.start : self.start + self.shape.numel()]
        stored = flat.view(len(flat), *self.shape)
        return stored.mT if self.turned else stored


class StackedAdapters:
    """Adapters of equal structure, stacked.

    Args:
        adapters: trained adapters for one backbone: same methods, same sites. Sizes may differ where an edit says that
            zeros may be appended to its tensors (`zero_padded`: LoRA of several ranks, pruned AdaLoRA).

    Raises:
        UserError: they differ in structure, or a method cannot be stacked; the message says where.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)
        first = self.adapters[0]
        self._check(first)
        self._edits: dict[str, Edit] = {}
        """Edit -> the first adapter's."""
        self._identities = {
            f"{index}/{site.name}": id(edit)
            for index, part in enumerate(first.parts)
            for site, edit in part.items()  # type: ignore[operator]
        }
        """Edit -> the first adapter's own, by identity: it is listed under its module and under its site."""
        self._parts: dict[str, dict[str, _Part]] = {}
        """Edit -> tensor name -> where it lies, for those in which adapters differ; equal ones (frozen projections) are not
        copied."""
        self.blocks: list[Tensor] = []
        """(adapters, numbers) of one device and number format: all that an adapter has there, one after the other."""
        pieces: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for name, edits in self._by_site().items():
            self._edits[name], self._parts[name] = edits[0], {}
            for key, stacked in _stack(name, edits).items():
                block = list(pieces).index(kind) if (kind := (stacked.device, stacked.dtype)) in pieces else len(pieces)
                own = pieces.setdefault(kind, [])
                turned = stacked.dim() == 3 and stacked.shape[-2] > stacked.shape[-1]
                stored = stacked.mT if turned else stacked
                start = sum(piece.shape[1] for piece in own)
                self._parts[name][key] = _Part(block, start, stored.shape[1:], turned)
                flat = stored.reshape(len(self.adapters), -1)
                own.append(functional.pad(flat, (0, -flat.shape[1] % _ALIGNED)))
        self.blocks = [torch.cat(own, dim=1) for own in pieces.values()]

    @torch.no_grad()
    def added(self, adapter: Adapter) -> StackedAdapters:
        """This stack with one more at its end. Where that has the layout of the others, it alone is looked at.

        Raises:
            UserError: as the constructor.
        """
        pair = StackedAdapters([self.adapters[0], adapter])
        rows = [block[:1].clone() for block in self.blocks]  # where it is equal to the first, `pair` has nothing
        places = self.tensors(rows)
        for name, tensors in pair.tensors(pair.blocks).items():
            for key, both in tensors.items():
                place, value = places[name].get(key), both[1:]
                if place is None or any(have > room for have, room in zip(value.shape, place.shape, strict=True)):
                    return StackedAdapters([*self.adapters, adapter])
                place.zero_()[tuple(slice(size) for size in value.shape)] = value
        grown = copy.copy(self)
        grown.adapters = (*self.adapters, adapter)
        grown.blocks = [torch.cat([block, row]) for block, row in zip(self.blocks, rows, strict=True)]
        return grown

    def extends(self, other: StackedAdapters) -> bool:
        """Whether it is the other with more at its end, in the same layout."""
        return self._parts is other._parts and self.adapters[: len(other.adapters)] == other.adapters

    def _by_site(self) -> dict[str, list[Edit]]:
        edits: dict[str, list[Edit]] = defaultdict(list)
        for adapter in self.adapters:
            for index, part in enumerate(adapter.parts):
                for site, edit in part.items():  # type: ignore[operator]
                    # frozen: what a network computes is gathered by row, not the network
                    edits[f"{index}/{site.name}"].append(edit.frozen())
        return edits

    def _check(self, first: Adapter) -> None:
        for method in first.methods:
            if not method.capabilities.stackable:
                raise UserError(f"adapters of method {method.name!r} cannot be stacked; use each for rows of its own.")
        if first.weights:
            raise UserError("adapters of experts or convolutions cannot be stacked; use each for rows of its own.")
        expected = [(part.method.name, tuple(site.name for site, _ in part.items())) for part in first.parts]  # type: ignore[union-attr, operator]
        for number, adapter in enumerate(self.adapters):
            actual = [(part.method.name, tuple(site.name for site, _ in part.items())) for part in adapter.parts]  # type: ignore[union-attr, operator]
            if actual != expected:
                methods = [name for name, _ in actual], [name for name, _ in expected]
                where = (
                    f"it has methods {methods[0]}, the first has {methods[1]}"
                    if methods[0] != methods[1]
                    else "they change different modules"
                )
                raise UserError(f"adapter {number} cannot be stacked with the first: {where}.")

    @torch.no_grad()
    def gather(self, indices: Tensor) -> GatheredAdapter:
        """The adapter of each row.

        Args:
            indices: (rows,) int64, which of the stacked adapters a row belongs to.

        Returns:
            What an `Assignment` takes as its adapter, for exactly these rows in this order.
        """
        return self.adapter(self.tensors([block[indices.to(block.device)] for block in self.blocks]))

    def tensors(self, blocks: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
        """Edit -> tensor name -> (rows, ...), views of blocks (rows, numbers) that are laid out as the stack's."""
        return {name: {key: part.of(blocks) for key, part in own.items()} for name, own in self._parts.items()}

    def adapter(self, tensors: dict[str, dict[str, Tensor]]) -> GatheredAdapter:
        """The adapter of rows that have these `tensors`."""
        first = self.adapters[0]
        clones = {number: _with_rows(self._edits[name], tensors[name]) for name, number in self._identities.items()}

        def swap(pairs: dict[str, Any]) -> dict[str, Any]:
            return {name: [(site, clones[id(edit)]) for site, edit in edits] for name, edits in pairs.items()}

        virtual: Any = {stack: [clones[id(edit)] for edit in edits] for stack, edits in first.virtual.items()}
        return GatheredAdapter(
            swap(first.inputs), swap(first.outputs), set(first.captures), virtual, swap(first.prefixes), first.methods
        )


class RunningRows:
    """Adapters of the rows of a batch from which rows come and go: what a row got stays where it is for as long as the row does.

        places of the batch    0 1 2 3 4 5 6 7 8 9 ...
        blocks                     [ . . . . . ]        room for some more on both sides
        rows of the stack              x x x            a view; only new rows are copied

    Args:
        stacked: the adapters.
    """

    def __init__(self, stacked: StackedAdapters) -> None:
        self._stacked = stacked
        self._first = 0
        """Place in the batch of the first row that there is room for."""
        self._adapters: list[int | None] = []
        """Whose numbers each of those rows has."""
        self._blocks: list[Tensor] = []
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._views: dict[tuple[int, int], GatheredAdapter] = {}
        """From which row to which -> its adapter, which has the numbers that stand there whenever it is used."""

    def goes_on_with(self, stacked: StackedAdapters) -> bool:
        """Whether rows of that stack may be gathered from now on: it is the one before, or extends it."""
        if not stacked.extends(self._stacked):
            return False
        self._stacked = stacked
        return True

    @torch.no_grad()
    def gather(self, start: int, indices: Sequence[int]) -> GatheredAdapter:
        """The adapter of each row, as `StackedAdapters.gather` gives it; what was given before is void.

        Args:
            start: place in the batch of the first of the rows.
            indices: which of the stacked adapters each row belongs to.
        """
        stop = start + len(indices)
        if start < self._first or stop > self._first + len(self._adapters):
            self._make_room(start, stop)
        at = start - self._first
        own = at, at + len(indices)
        new = [place for place, index in enumerate(indices, at) if self._adapters[place] != index]
        if new:
            to, of = torch.tensor(new), torch.tensor([indices[place - at] for place in new])
            for block, stacked in zip(self._blocks, self._stacked.blocks, strict=True):
                block.index_copy_(0, to.to(block.device), stacked.index_select(0, of.to(block.device)))
            self._adapters[slice(*own)] = indices
        if own not in self._views:
            if len(self._views) == _MOST_VIEWS:
                del self._views[next(iter(self._views))]
            rows = {
                name: {key: tensor[slice(*own)] for key, tensor in tensors.items()}
                for name, tensors in self._tensors.items()
            }
            self._views[own] = self._stacked.adapter(rows)
        return self._views[own]

    def _make_room(self, start: int, stop: int) -> None:
        # A few more on both sides: groups grow and shrink by a row or two from step to step. Few, as a row is a whole adapter.
        more = 1 + (stop - start) // 4
        self._blocks, self._tensors, self._views = [], {}, {}  # let go of before others are made
        self._first = max(0, start - more)
        rows = stop + more - self._first
        self._adapters = [None] * rows
        self._blocks = [block.new_empty(rows, block.shape[1]) for block in self._stacked.blocks]
        self._tensors = self._stacked.tensors(self._blocks)


def _plain(edit: Edit) -> dict[str, Any]:
    """Settings of an edit that must agree among stacked ones."""
    # scalars are gathered by row like tensors; those of an edit inside another (a gated LoRA) are not
    return {name: value for name, value in edit.constants().items() if name not in edit.scalars}


def _named_tensors(edit: Edit) -> dict[str, Tensor]:
    return {**dict(edit.named_parameters(remove_duplicate=False)), **dict(edit.named_buffers(remove_duplicate=False))}


@torch.no_grad()
def _stack(name: str, edits: list[Edit]) -> dict[str, Tensor]:
    """Tensor name -> (adapters, ...), for those in which the edits differ."""
    first = edits[0]
    expected = _plain(first)
    for edit in edits:
        if type(edit) is not type(first) or _plain(edit) != expected:
            plain = _plain(edit)
            differing = sorted(k for k in expected.keys() | plain.keys() if expected.get(k) != plain.get(k))
            raise UserError(f"adapters cannot be stacked: at {name} they differ in {differing or 'kind'}.")
    stacks: dict[str, Tensor] = {}
    named = [_named_tensors(edit) for edit in edits]
    for key in named[0]:
        tensors = [own[key].detach() for own in named]
        # equal tensors (VeRA's frozen projections) stay one: gathering them would copy the same values for every row
        if key in first.bookkeeping or all(t.shape == tensors[0].shape and torch.equal(t, tensors[0]) for t in tensors):
            continue
        shapes = {tuple(t.shape) for t in tensors}
        if len(shapes) > 1:
            # a LoRA of rank 4 is one of rank 8 with four rows of zeros; other tensors mean something else when padded
            if not first.zero_padded:
                raise UserError(
                    f"adapters cannot be stacked: at {name}, tensor {key!r} has the shapes {sorted(shapes)}."
                )
            largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
            tensors = [
                functional.pad(
                    t,
                    [n for have, want in reversed(list(zip(t.shape, largest, strict=True))) for n in (0, want - have)],
                )
                for t in tensors
            ]
        # one copy of each tensor in one block: a gather by row then reads memory in long runs
        stacked = torch.stack(tensors)
        if not isinstance(first, Override) and stacked.dim() < 3:  # numbers and vectors broadcast over tokens
            stacked = stacked.view(len(edits), 1, -1)
        stacks[key] = stacked
    for key in first.scalars:
        values = [float(getattr(edit, key)) for edit in edits]
        if len(set(values)) > 1:
            stacks[key] = torch.tensor(values, device=next(iter(named[0].values())).device).view(-1, 1, 1)
    return stacks


def _with_rows(module: Any, tensors: dict[str, Tensor]) -> Any:
    """A light copy of a module in which some tensors are others; no parameter is copied."""
    # Neither deepcopy, which would copy the backbones and frozen tensors that an edit refers to, nor copy and setattr, which ask
    # a module about its state and look at each value: a server does this at most steps.
    clone = object.__new__(type(module))
    own = {**module.__dict__, "_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    own["_modules"] = {
        name: _with_rows(child, {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")})
        for name, child in module._modules.items()
        if isinstance(child, nn.Module)
    }
    for name, tensor in tensors.items():
        if "." not in name:
            # a plain attribute: the gathered tensor (rows, ...) is no parameter, and nn.Module would refuse it as one
            own["_parameters"].pop(name, None)
            own["_buffers"].pop(name, None)
            own[name] = tensor
    if isinstance(module, Edit):
        own["batched"] = bool(tensors)
    object.__setattr__(clone, "__dict__", own)
    return clone
