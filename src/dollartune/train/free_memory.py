"""Memory that this process may use: the host's or the container's (cgroup), what a device has free, and what a budget allows.

    with memory_limited(2 * 2**30, device):     allocations beyond 2 GiB fail as on a machine that has no more;
        train()                                 `train.out_of_memory` then goes on with smaller passes

The one place that knows of cgroups. psutil and `free` tell what the whole machine has; in a container the kernel ends the
process long before that is used up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.budget.peak_memory import resident_bytes

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2^63 where version 2 writes `max`; no machine has an exbibyte."""
_PAGES_OF_FILES = 32 << 20
"""Of a limit, kept for pages of libraries that are read in meanwhile: the kernel counts them as the process's memory and limits
only what it allocates."""
_limit_bytes: int | None = None
"""Of this process, inside `memory_limited`."""


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
    return free if _limit_bytes is None else max(0, min(free, _limit_bytes - resident_bytes()))


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on a device."""
    if device.type != "cuda":
        return free_host_bytes()
    import torch

    # torch keeps freed blocks for itself, so that the driver counts them as used; the next pass can have them
    kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(torch.cuda.mem_get_info(device)[0]) + kept_by_torch
    return free if _limit_bytes is None else max(0, min(free, _limit_bytes - torch.cuda.memory_allocated(device)))


@contextmanager
def memory_limited(most_bytes: int | None, device: torch.device) -> Iterator[None]:
    """Inside, what would take the process (on a GPU: the device's memory) beyond `most_bytes` fails as out of memory.

    On Linux the kernel refuses the allocation (`RLIMIT_DATA`), on a GPU torch's allocator does. Elsewhere nothing refuses:
    only what asks for free memory first heeds the limit.

    Args:
        most_bytes: in all, what the process holds already included; None: no limit.

    Raises:
        MemoryError: that is taken already.
    """
    global _limit_bytes
    if most_bytes is None:
        yield
        return
    if device.type != "cuda" and resident_bytes() + _PAGES_OF_FILES >= most_bytes:
        raise MemoryError(f"{resident_bytes():,} bytes are taken before anything was trained.")
    before, _limit_bytes = _limit_bytes, most_bytes
    try:
        with _refused_on_gpu(most_bytes, device) if device.type == "cuda" else _refused_by_kernel(most_bytes):
            yield
    finally:
        _limit_bytes = before


@contextmanager
def _refused_by_kernel(most_bytes: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # The kernel counts what is allocated, whether it was ever written to or not: so far that is more than what is in RAM, and
    # from here on at least as much.
    most = _allocated_bytes() + max(0, most_bytes - resident_bytes() - _PAGES_OF_FILES)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _refused_on_gpu(most_bytes: int, device: torch.device) -> Iterator[None]:
    import torch

    whole = int(torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _allocated_bytes() -> int:
    """What counts against `RLIMIT_DATA`: private memory that may be written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))


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
    return int(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
