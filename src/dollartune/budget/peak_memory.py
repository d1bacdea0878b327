"""Meters for a piece of work: peak memory, energy, CO2.

    with PeakMemory() as memory, Energy() as energy:
        train()
    memory.peak_bytes, energy.joules, energy.how

Energy is optional and says how it was had: an accelerator's own counter, the processor's (RAPL), or an estimate from
time and the watts of the machine's row in the price table. CO2 = energy x grams per kilowatt-hour of the grid.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

_RAPL = Path("/sys/class/powercap")
WORLD_GRAMS_PER_KWH = 445.0
"""Carbon intensity of electricity, world mean 2024 (International Energy Agency, Electricity 2025); grids range from 20
to 700, so state your own where you know it."""


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
        self.host_peak_bytes = max(self.host_peak_bytes, resident_bytes())
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
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch.cuda


class Energy:
    """Energy spent inside the `with` block.

    Args:
        watts: of the whole machine at full load (`prices.Machine.watts`), for the estimate where there is no counter.
        grams_per_kwh: carbon intensity of the grid.
        nvml: whether to ask the accelerators' counters.
        rapl: folder of the processor's counters.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        watts: float | None = None,
        grams_per_kwh: float = WORLD_GRAMS_PER_KWH,
        *,
        nvml: bool = True,
        rapl: Path = _RAPL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watts, self.grams_per_kwh, self.nvml, self.rapl, self.clock = watts, grams_per_kwh, nvml, rapl, clock
        self.joules: float | None = None
        """None if there is no counter and no watts to estimate from."""
        self.how: Literal["measured", "estimated", "unknown"] = "unknown"
        self.parts: dict[str, float] = {}
        """Joules by counter: `gpu0`, `package-0`."""

    @property
    def kilowatt_hours(self) -> float | None:
        return None if self.joules is None else self.joules / 3.6e6

    @property
    def co2_grams(self) -> float | None:
        return None if self.joules is None else self.joules / 3.6e6 * self.grams_per_kwh

    def __enter__(self) -> Self:
        self._started = self.clock()
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed, after = self.clock() - self._started, self._read()
        self.parts = {}
        for name, (start, wraps_at) in self._before.items():
            if name in after:
                spent = after[name][0] - start
                self.parts[name] = spent + wraps_at if spent < 0 else spent
        if self.parts:
            self.joules, self.how = sum(self.parts.values()), "measured"
        elif self.watts is not None:
            self.joules, self.how = self.watts * elapsed, "estimated"

    def _read(self) -> dict[str, tuple[float, float]]:
        """Counters in joules, each with the value at which it starts again at zero."""
        return (_nvml_joules() if self.nvml else {}) | _rapl_joules(self.rapl)


def _nvml_joules() -> dict[str, tuple[float, float]]:
    """Total energy of each NVIDIA device since its driver was loaded (Volta and later); empty where there is none."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    counters = {}
    try:
        for device in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(device)
            try:
                millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except pynvml.NVMLError:  # an older device without the counter: left out, and `parts` shows it
                continue
            counters[f"gpu{device}"] = (millijoules / 1e3, 2.0**64 / 1e3)
    finally:
        pynvml.nvmlShutdown()
    return counters


def _rapl_joules(folder: Path) -> dict[str, tuple[float, float]]:
    """Energy of each processor package by Intel's and AMD's running average power limit counters, where readable."""
    counters = {}
    for package in sorted(folder.glob("intel-rapl:[0-9]")) if folder.exists() else ():
        try:
            microjoules = int((package / "energy_uj").read_text())
            wraps_at = int((package / "max_energy_range_uj").read_text())
            name = (package / "name").read_text().strip()
        except (OSError, ValueError):  # readable by root alone on most systems: left out, and `parts` shows it
            continue
        counters[name] = (microjoules / 1e6, wraps_at / 1e6)
    return counters
