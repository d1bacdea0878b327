"""Where trials would run: this machine, or a row of the table of machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dollartune.planner.roofline import Speed, machine_speed

if TYPE_CHECKING:
    from dollartune.budget.prices import Machine

USABLE_SHARE = 0.95
"""Share of a memory that may be planned with. Planned peaks of the settings of `make bench-planner` were within 10 % of the
measured ones in nine of ten, so a plan at the limit would often not fit; 5 % on top is what a machine's own services take."""
_CONTEXT_BYTES = 700_000_000
"""Of a CUDA context with its libraries, which the allocator does not count."""
_PROCESS_BYTES = 500_000_000
"""Of a Python process with torch and transformers."""
DEVICE_SLACK = 0.08
"""Share of activations that CUDA's caching allocator holds beside them: blocks are rounded to 512 bytes, large ones to 2 MiB."""


@dataclass(frozen=True)
class Hardware:
    """A machine as the planner sees it."""

    name: str
    memory_bytes: int
    """Of one device, or of the host where trials run on the processor."""
    speed: Speed
    dollars_per_hour: float
    runtime_bytes: int
    """What a process has before the backbone is loaded."""
    allocator_slack: float
    """What the allocator holds beyond what is alive, as a share of activations."""
    kernel_bytes: int = 0
    """What kernels and the autograd graph hold beside tensors, whatever the method and the shapes."""
    device: str = "cpu"
    """Kind of device that computes; it decides the kernels."""
    limit_bytes: int | None = None
    """The most that a budget allows."""

    @property
    def usable_bytes(self) -> int:
        usable = int(USABLE_SHARE * self.memory_bytes)
        return usable if self.limit_bytes is None else min(usable, self.limit_bytes)

    def dollars(self, seconds: float) -> float:
        return seconds * self.dollars_per_hour / 3600


def named_hardware(machine: Machine, dollars_per_hour: float | None = None, limit_bytes: int | None = None) -> Hardware:
    """A machine of the table: one of its devices, or its host if it has none."""
    cuda = machine.kind == "cuda"
    return Hardware(
        machine.name,
        machine.device_memory_bytes
        if cuda
        else machine.host_memory_bytes,  # a trial has one device, however many there are
        machine_speed(machine),
        machine.dollars_per_hour if dollars_per_hour is None else dollars_per_hour,
        _CONTEXT_BYTES if cuda else _PROCESS_BYTES,
        DEVICE_SLACK if cuda else HOST_SLACK,
        0 if cuda else HOST_KERNEL_BYTES,
        machine.kind,
        limit_bytes,
    )


HOST_SLACK, HOST_KERNEL_BYTES = 0.33, 12_000_000
"""Gaps between allocations on a processor, as a share of activations (training keeps freed memory in the heap, see
`train.malloc`), and what neither grows with them nor is compiled for a shape (`op_trace.COMPILED_BYTES`): the graph's nodes,
buffers of threads. Both were fitted on the settings of `make bench-planner`, whose page says how well they hold where they were
not."""


def this_hardware(speed: Speed, dollars_per_hour: float = 0.0, limit_bytes: int | None = None) -> Hardware:
    """This machine, with a speed that was measured on it or supposed, and a budget's limit of memory."""
    import torch

    # Of several GPUs the first: a trial runs on one, and others like it run beside it.
    if torch.cuda.is_available():
        memory = int(torch.cuda.get_device_properties(0).total_memory)
        return Hardware(
            "this machine",
            memory,
            speed,
            dollars_per_hour,
            _CONTEXT_BYTES,
            DEVICE_SLACK,
            device="cuda",
            limit_bytes=limit_bytes,
        )
    from dollartune.budget.peak_memory import resident_bytes
    from dollartune.train.free_memory import host_memory_bytes

    # What this process holds now is what every trial starts from: its weights and activations come on top.
    return Hardware(
        "this machine", host_memory_bytes(), speed, dollars_per_hour, resident_bytes(), HOST_SLACK, HOST_KERNEL_BYTES,
        limit_bytes=limit_bytes,
    )  # fmt: skip
