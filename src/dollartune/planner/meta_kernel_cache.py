"""What kernels give, by what they are given: tensors without contents differ in shape alone, so each case is computed once.

The layers of a backbone are alike, and torch works out the result of most kernels on the meta device in Python, many times
slower than it makes an empty tensor of that shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """What a kernel gives."""

    tensors: tuple[tuple[Any, Any, torch.dtype] | None, ...]
    """Those that it makes anew: (shape, strides, dtype) each, None where it gives nothing. Empty: it changes what it got."""
    alone: bool
    """Whether it gives one tensor, and no tuple of them."""

    def make(self, args: Any) -> tuple[Any, list[Tensor]]:
        """What the kernel would return for such arguments, and new tensors in it."""
        if not self.tensors:
            return (args[0] if self.alone else None), []
        made = [
            None if layout is None else torch.empty_strided(layout[0], layout[1], dtype=layout[2], device="meta")
            for layout in self.tensors
        ]
        tensors = [tensor for tensor in made if tensor is not None]
        return (tensors[0] if self.alone else tuple(made)), tensors


def case(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """All that decides what a kernel gives; None where contents of tensors may.

    Beside a tensor without contents, others count by their shape alone, but where contents make the shape.
    """
    key: list[Any] = [func]
    on_meta: list[bool] = []
    _collect(args, key, on_meta)
    if kwargs:
        key.extend(kwargs)
        _collect(kwargs.values(), key, on_meta)
    # `nonzero` and its like: real contents decide the shape, so the result of one call is not that of another.
    if not all(on_meta) and (not any(on_meta) or torch.Tag.dynamic_output_shape in func.tags):
        return None
    return tuple(key)


def _collect(values: Iterable[Any], key: list[Any], on_meta: list[bool]) -> None:
    """Adds values without contents to a key; notes of each tensor whether it had none."""
    for value in values:
        kind = type(value)
        if kind is Tensor or isinstance(value, Tensor):
            meta, strides = value.is_meta, value.stride()
            on_meta.append(meta)
            key += (value.dtype, value.shape, strides, meta)
            if 0 in strides:  # what is read of an expanded tensor is what it is stored in
                key.append(value.untyped_storage().nbytes())
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            _collect(value, key, on_meta)
        else:
            key += (kind, value)  # 1, 1.0 and True are equal, and give different types


def result(func: Any, args: Any, out: Any, inputs: set[int]) -> Result | None:
    """What a kernel gave, to be given again; None if it is a view, which has to be made of what it views.

    Args:
        inputs: ids of the storages that it was given.
    """
    if func._schema.is_mutable:
        same = (out is None or out is args[0]) and torch.Tag.inplace_view not in func.tags
        return Result((), out is not None) if same else None
    outputs = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple | list) else []
    tensors = [t for t in outputs if t is not None]
    storages = {id(t.untyped_storage()) for t in tensors if isinstance(t, Tensor) and t.is_meta}
    # Views, or results that share memory: a new tensor in their place would be counted twice.
    if not tensors or len(storages) < len(tensors) or storages & inputs:
        return None
    made = Result(
        tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in outputs), isinstance(out, Tensor)
    )
    pairs = zip(made.make(())[1], tensors, strict=True)
    # Some kernels give a part of a larger buffer, whose bytes count.
    return made if all(a.untyped_storage().nbytes() == b.untyped_storage().nbytes() for a, b in pairs) else None
