"""Memory that this process may use: the host's or the container's (cgroup), and what a device has free.

The one place that knows of cgroups. psutil and `free` tell what the whole machine has; in a container the kernel ends the
process long before that is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2^63 where version 2 writes `max`; no machine has an exbibyte."""


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
    return free if container is None else min(free, container.free_bytes)


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on a device."""
    if device.type != "cuda":
        return free_host_bytes()
    import torch

    # torch keeps freed blocks for itself, so that the driver counts them as used; the next pass can have them
    kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept_by_torch


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
