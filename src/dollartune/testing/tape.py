"""Records like a CUDA graph, on a processor: the operators that a function runs, on the very tensors that it ran them on.

A replay runs them again and writes each result where the first one lies. Whatever Python decided, or read from a tensor, stays
as it was; reading a tensor's value while recording fails, as it does on a GPU, and so does putting a number there from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = (
    "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_consecutive",
)  # fmt: skip


class _NoCopies(TorchFunctionMode):
    """A number that is put on a device is copied there from the host, which no recording holds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.tensor and (kwargs or {}).get("device") is not None:
            raise RuntimeError("torch.tensor copies from the host while a pass is recorded")
        return function(*args, **(kwargs or {}))


def _counts(call: Any, args: Any) -> bool:
    """Whether an index is a mask, whose count decides a shape."""
    indices = args[1] if call._schema.name == "aten::index" else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


class Tape(TorchDispatchMode):
    """One recording."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, object], Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call._schema.name in _READS or _counts(call, args):
            raise RuntimeError(f"{call} reads a tensor while a pass is recorded")
        result = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, result))
        return result

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        with _NoCopies(), self:
            return function()

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for call, args, kwargs, result in self.calls:
                again = call(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
