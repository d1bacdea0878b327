"""Peak memory, sampled and exact."""

from __future__ import annotations

import mmap
import time

import pytest

from dollartune.budget.peak_memory import PeakMemory, highest_resident_bytes


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


@pytest.mark.skipif(not highest_resident_bytes(), reason="only Linux keeps the highest figure")
def test_the_highest_figure_is_in_bytes() -> None:
    import resource

    # ru_maxrss counts from before the process's own program began, so that it may be the higher one
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.5 * highest < highest_resident_bytes() < 1.1 * highest
