"""Meters of memory and energy."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest

from dollartune.budget.peak_memory import Energy, PeakMemory, highest_resident_bytes


def used(size: int) -> mmap.mmap:
    """So many bytes of new pages in use; the process's allocator would hand out what it keeps from earlier tests."""
    block = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        block[start] = 1
    return block


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory() as memory:
        block = used(64 * 2**20)
        deadline = time.monotonic() + 30
        while memory.added_bytes < 48 * 2**20 and time.monotonic() < deadline:  # until the sampler has looked
            time.sleep(0.005)
        block.close()
    assert memory.added_bytes >= 48 * 2**20
    assert memory.peak_bytes >= memory.start_bytes + 48 * 2**20


@pytest.mark.skipif(not highest_resident_bytes(), reason="only Linux keeps the highest figure")
def test_a_new_peak_is_seen_however_short() -> None:
    size = highest_resident_bytes() + 64 * 2**20
    with PeakMemory(interval_seconds=60) as memory:
        used(size).close()
    assert memory.host_peak_bytes >= memory.start_bytes + size - 2**20  # the kernel counts in batches
    with PeakMemory(interval_seconds=60) as memory:  # lower than ever: sampled, and so not the peak of before
        pass
    assert memory.host_peak_bytes < size


def package(folder: Path, microjoules: int) -> None:
    place = folder / "intel-rapl:0"
    place.mkdir(exist_ok=True)
    (place / "energy_uj").write_text(str(microjoules))
    (place / "max_energy_range_uj").write_text("1000000000")
    (place / "name").write_text("package-0\n")


@pytest.mark.parametrize(("start", "end", "joules"), [(5_000_000, 8_000_000, 3.0), (999_000_000, 1_000_000, 2.0)])
def test_processor_counter_with_and_without_wrapping(tmp_path: Path, start: int, end: int, joules: float) -> None:
    package(tmp_path, start)
    with Energy(nvml=False, rapl=tmp_path, grams_per_kwh=360) as energy:
        package(tmp_path, end)
    assert energy.joules == pytest.approx(joules)
    assert energy.how == "measured"
    assert energy.parts == {"package-0": pytest.approx(joules)}
    assert energy.co2_grams == pytest.approx(joules * 1e-4)


def test_estimate_from_watts(tmp_path: Path) -> None:
    times = iter([10.0, 3610.0])
    with Energy(watts=100, nvml=False, rapl=tmp_path / "none", clock=lambda: next(times)) as energy:
        pass
    assert energy.how == "estimated"
    assert energy.kilowatt_hours == pytest.approx(0.1)


def test_unknown_is_said(tmp_path: Path) -> None:
    with Energy(nvml=False, rapl=tmp_path / "none") as energy:
        pass
    assert (energy.joules, energy.kilowatt_hours, energy.co2_grams, energy.how) == (None, None, None, "unknown")


def test_no_accelerator_is_no_error() -> None:
    with Energy(watts=10) as energy:
        pass
    assert energy.joules is not None
