"""Freed memory stays in the process: asking again for what was freed costs no new pages."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from dollartune.train.malloc import keep_freed_memory
assert {kept} == False or keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    [torch.ones(2 << 20) for _ in range(20)]
for _ in range(4): use()
before = faults()
for _ in range(5): use()
print(faults() - before)
"""


def page_faults(kept: bool) -> int:
    threshold = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # glibc's default, which else may rise by itself
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(kept=kept)],
        capture_output=True, text=True, check=True, env={**os.environ, **threshold},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_used_again() -> None:
    assert page_faults(True) < 0.2 * page_faults(False)
