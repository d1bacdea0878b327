"""Peak memory of a piece of work.

with PeakMemory() as memory:
    train()
memory.peak_bytes
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def highest_resident_bytes() -> int:
    """The most that this process ever had in RAM, as Linux counts it; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


class PeakMemory:
    """Peak memory inside the `with` block, of the process and of each CUDA device in use.

    CUDA's is exact (the allocator's own maximum, which is reset on entering). So is the process's on Linux where it is
    higher than ever before; else a thread samples it, and a peak shorter than `interval_seconds` may be missed.
    """

    def __init__(self, interval_seconds: float = 0.01) -> None:
        self.interval_seconds = interval_seconds
        self.start_bytes = 0
        self.host_peak_bytes = 0
        """Resident memory of the process at its highest."""
        self.device_peak_bytes: dict[int, int] = {}
        """By CUDA device; empty without one."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def peak_bytes(self) -> int:
        """Of the devices together where there are any in use, else of the process."""
        used = sum(self.device_peak_bytes.values())
        # Where a GPU computes, host memory is not what a trial is refused for.
        return used or self.host_peak_bytes

    @property
    def added_bytes(self) -> int:
        """The process's peak beyond what it had on entering."""
        return max(0, self.host_peak_bytes - self.start_bytes)

    def __enter__(self) -> Self:
        self.start_bytes = self.host_peak_bytes = resident_bytes()
        self._highest_before = highest_resident_bytes()
        cuda = _cuda()
        if cuda is not None:
            for device in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(device)
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, name="dollartune-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # A block shorter than the interval was never sampled.
        self.host_peak_bytes = max(self.host_peak_bytes, resident_bytes())
        # The kernel's mark never falls, so it says something of this block only where it has risen; a write to
        # clear_refs would reset it, which containers forbid.
        if (highest := highest_resident_bytes()) > self._highest_before:
            self.host_peak_bytes = max(self.host_peak_bytes, highest)
        cuda = _cuda()
        if cuda is not None:
            peaks = {device: int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count())}
            self.device_peak_bytes = {device: peak for device, peak in peaks.items() if peak}

    def _sample(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            self.host_peak_bytes = max(self.host_peak_bytes, resident_bytes())


def _cuda() -> Any | None:
    """`torch.cuda` if torch is already imported and has initialized a device; meters never import or start it."""
    torch = sys.modules.get("torch")
    # Starting CUDA takes a second and 700 MB, which would be measured then.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch.cuda
