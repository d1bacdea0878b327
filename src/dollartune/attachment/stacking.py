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
        self._tensors: dict[str, dict[str, Tensor]] = {}
        """Edit -> tensor name -> (adapters, ...) where they differ; equal ones (frozen projections) are not copied."""
        self._edits: dict[str, Edit] = {}
        """Edit -> the first adapter's."""
        for name, edits in self._by_site().items():
            self._edits[name], self._tensors[name] = edits[0], _stack(name, edits)

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
        first = self.adapters[0]
        clones: dict[int, Edit] = {}
        for index, part in enumerate(first.parts):
            for site, edit in part.items():  # type: ignore[operator]
                name = f"{index}/{site.name}"
                # (rows, ...)
                rows = {key: tensor[indices.to(tensor.device)] for key, tensor in self._tensors[name].items()}
                # By identity: one edit is listed under its module and under its site.
                clones[id(edit)] = _with_rows(self._edits[name], rows)

        def swap(pairs: dict[str, Any]) -> dict[str, Any]:
            return {name: [(site, clones[id(edit)]) for site, edit in edits] for name, edits in pairs.items()}

        virtual: Any = {stack: [clones[id(edit)] for edit in edits] for stack, edits in first.virtual.items()}
        return GatheredAdapter(
            swap(first.inputs), swap(first.outputs), set(first.captures), virtual, swap(first.prefixes), first.methods
        )


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
    for edit in edits:
        if type(edit) is not type(first) or _plain(edit) != _plain(first):
            differing = sorted(
                k for k in _plain(first).keys() | _plain(edit).keys() if _plain(first).get(k) != _plain(edit).get(k)
            )
            raise UserError(f"adapters cannot be stacked: at {name} they differ in {differing or 'kind'}.")
    stacks: dict[str, Tensor] = {}
    for key in _named_tensors(first):
        tensors = [_named_tensors(edit)[key].detach() for edit in edits]
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
            stacks[key] = torch.tensor(values, device=next(iter(_named_tensors(first).values())).device).view(-1, 1, 1)
    return stacks


def _with_rows(module: Any, tensors: dict[str, Tensor]) -> Any:
    """A light copy of a module in which some tensors are others; no parameter is copied."""
    # not deepcopy: backbones and frozen tensors that an edit refers to must not be copied for every batch
    clone = copy.copy(module)
    clone.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    clone.__dict__["_modules"] = {
        name: _with_rows(child, {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")})
        for name, child in module._modules.items()
        if isinstance(child, nn.Module)
    }
    for name, tensor in tensors.items():
        if "." not in name:
            # a plain attribute: the gathered tensor (rows, ...) is no parameter, and nn.Module would refuse it as one
            clone._parameters.pop(name, None)
            clone._buffers.pop(name, None)
            object.__setattr__(clone, name, tensor)
    if isinstance(module, Edit):
        clone.__dict__["batched"] = bool(tensors)
    return clone
