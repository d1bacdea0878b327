"""Freed memory stays in the process: asking again for what was freed costs no new pages."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, torch
from dollartune.train.malloc import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    [torch.ones(2 << 20) for _ in range(20)]
for kept in (True, False):
    if not os.fork():  # a process for each, which imports nothing again
        assert not kept or keep_freed_memory()
        for _ in range(4): use()
        before = faults()
        for _ in range(5): use()
        print(faults() - before, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def page_faults() -> list[int]:
    """Of two processes: one keeps freed memory, one does not."""
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # glibc's default, which else may rise by itself
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**os.environ, **threshold}
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_used_again() -> None:
    kept, freed = page_faults()
    assert kept < 0.2 * freed
