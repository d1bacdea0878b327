"""Memory of a training pass: what it saves for the backward pass, what is free, and how many trials may share one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

log = logging.getLogger("dollartune")

_SHARE = 0.5
"""Of what is free; the rest is for gradients on their way, logits and other people's processes."""
_CGROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on a device, a container's limit considered."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)


class SavedBytes:
    """Bytes of activations that are saved for the backward pass inside the `with` block, each storage counted once.

    Args:
        parameters: tensors that are there anyway and do not count.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in parameters}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


class Room:
    """How many trials share a pass: all of them, or what free memory allows by a measured pass.

    It decides nothing but speed: trials that do not fit into one pass take turns within the same step.
    """

    def __init__(self, device: torch.device, limit_bytes: int | None = None) -> None:
        self.device, self.limit_bytes = device, limit_bytes
        self.trials = sys.maxsize

    def measure(self, saved_bytes: int, tokens: int, most_tokens: int) -> None:
        """Learns from a pass of one trial: what it saved for its tokens, and the most tokens that a trial may bring."""
        per_trial = max(1.0, saved_bytes / max(1, tokens) * most_tokens)
        free = free_bytes(self.device) if self.limit_bytes is None else self.limit_bytes
        self.trials = max(1, int(_SHARE * free / per_trial))

    def halve(self, trials: int) -> bool:
        """After running out of memory with so many trials; False if there was only one."""
        self.trials = max(1, trials // 2)
        if trials > 1:
            log.warning("out of memory with %d trials in a pass: %d from now on", trials, self.trials)
        return trials > 1
