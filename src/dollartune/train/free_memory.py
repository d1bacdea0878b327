"""Memory that this process may use: the host's or the container's (cgroup), what a device has free, and what a budget allows.

    with memory_limited(2 * 2**30, device):     as on a machine that has 2 GiB: passes are made to fit, and where one goes
        train()                                 beyond all the same, `train.out_of_memory` goes on with smaller ones

The one place that knows of cgroups. psutil and `free` tell what the whole machine has; in a container the kernel ends the
process long before that is used up.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.budget.peak_memory import resident_bytes
from dollartune.train.malloc import give_back_freed_memory

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2^63 where version 2 writes `max`; no machine has an exbibyte."""
_NEAR = 0.9
"""Of a limit: from there on, what was freed and kept is given back after each step, which takes some milliseconds."""
_KERNELS_KEPT = "8"
"""Kernels that oneDNN keeps within a limit, in place of 1,024: each new shape's took up to 40 MB, in sum more than the passes."""
_limits: dict[str, int] = {}
"""Kind of device -> most bytes, inside `memory_limited`."""


class MemoryTaken(MemoryError):
    """A limit of memory is reached by what smaller passes do not make smaller."""


class PassesTooLarge(MemoryError):
    """A training step took more than a limit of memory allows, or will.

    Args:
        rows: of a pass.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(
            f"training passes of {rows} row{'s' if rows > 1 else ''} take more memory than the budget leaves."
        )
        self.rows = rows


@dataclass(frozen=True)
class ContainerMemory:
    """The limit of the cgroup that this process runs in."""

    limit_bytes: int
    used_bytes: int
    """Without cached pages of files that the kernel drops before it ends a process (`inactive_file`)."""

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def container_memory() -> ContainerMemory | None:
    """What the container may use, and uses; None where nothing limits it.

    Source: the kernel's documentation of cgroup v2 (memory.max, memory.current) and of v1 (memory.limit_in_bytes). The
    working set is counted as Kubernetes counts it.
    """
    for folder, limit_name, used_name in (
        (_CGROUP, "memory.max", "memory.current"),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit = _number(folder / limit_name)
        if limit is not None and limit < _UNLIMITED_BYTES:
            used = (_number(folder / used_name) or 0) - _reclaimable_bytes(folder / "memory.stat")
            return ContainerMemory(limit, max(0, used))
    return None


def host_memory_bytes() -> int:
    """Memory of the host, or of the container that limits it."""
    import psutil

    total = int(psutil.virtual_memory().total)
    container = container_memory()
    return total if container is None else min(total, container.limit_bytes)


def free_host_bytes() -> int:
    """Memory of the host that this process may still take, a container's limit considered."""
    import psutil

    free = int(psutil.virtual_memory().available)
    container = container_memory()
    if container is not None:
        free = min(free, container.free_bytes)
    return max(0, min(free, _limits["cpu"] - resident_bytes())) if "cpu" in _limits else free


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on a device."""
    if device.type != "cuda":
        return free_host_bytes()
    import torch

    # torch keeps freed blocks for itself, so that the driver counts them as used; the next pass can have them
    allocated = torch.cuda.memory_allocated(device)
    kept_by_torch = torch.cuda.memory_reserved(device) - allocated
    free, whole = torch.cuda.mem_get_info(device)
    # the driver knows nothing of the part that a Ray worker has
    part = int(torch.cuda.get_per_process_memory_fraction(device) * whole)
    return max(0, min(free + kept_by_torch, part - allocated, _limits.get("cuda", whole) - allocated))


@contextmanager
def memory_limited(most_bytes: int | None, device: torch.device) -> Iterator[None]:
    """Inside, `free_bytes` counts up to `most_bytes` in all, what the process (on a GPU: the device) holds included.

    On a GPU torch's allocator refuses what goes beyond. On a processor nothing may: libraries end the process where they are
    refused memory. There passes are made to fit (`rows_that_fit` and `forward_tokens` of `train.micro_batch`), and training asks
    `over_limit` after each step.

    Args:
        most_bytes: None: no limit.

    Raises:
        MemoryTaken: that is taken already.
    """
    if most_bytes is None:
        yield
        return
    if device.type != "cuda":
        # read when oneDNN is first used; a study in a process that has computed before keeps the cache that it has
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
        # tensors in reference cycles count as taken until then
        gc.collect()
        give_back_freed_memory()  # what was freed and kept is free
        if (taken := resident_bytes()) >= most_bytes:
            raise MemoryTaken(
                f"with the backbone loaded the process takes {numbers.size(taken)} of memory before anything is trained, and "
                f"the budget allows {numbers.size(most_bytes)}."
            )
    before = dict(_limits)
    _limits[device.type] = most_bytes
    try:
        with _refused_on_gpu(most_bytes, device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        _limits.clear()
        _limits.update(before)


def limited(device: torch.device) -> bool:
    """Whether `memory_limited` holds for it."""
    return device.type in _limits


def over_limit() -> bool:
    """Whether the process holds more than `memory_limited` allows it. A GPU's allocator lets nothing come to that."""
    if "cpu" not in _limits or resident_bytes() <= _NEAR * _limits["cpu"]:
        return False
    give_back_freed_memory()
    return resident_bytes() > _limits["cpu"]


def need_free(needed_bytes: int, what: str) -> None:
    """Refuses what `memory_limited` leaves no room for in the host's memory.

    Raises:
        MemoryTaken: with `what` as the subject of the sentence.
    """
    if "cpu" in _limits and needed_bytes > _limits["cpu"] - (taken := resident_bytes()):
        raise MemoryTaken(
            f"{what} takes about {numbers.size(needed_bytes)} of memory beside the {numbers.size(taken)} that the process has, "
            f"and the budget allows {numbers.size(_limits['cpu'])}."
        )


@contextmanager
def _refused_on_gpu(most_bytes: int, device: torch.device) -> Iterator[None]:
    import torch

    whole = int(torch.cuda.get_device_properties(device).total_memory)
    before = torch.cuda.get_per_process_memory_fraction(device)  # a Ray worker has a part of a GPU
    torch.cuda.set_per_process_memory_fraction(min(before, most_bytes / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _number(path: Path) -> int | None:
    """The number that a file of the cgroup holds; None for `max`, and where there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable_bytes(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    numbers = dict(line.split() for line in lines if len(line.split()) == 2)
    # version 1 has groups below this one under a name of their own; version 2 adds them anyway
    return int(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
