"""Keeps freed memory in the process while training on a CPU.

A training step frees and asks again for the same activations. glibc gives every piece above a threshold back to the
kernel and gets it page by page, zeroed, at the next step: 15 to 20 % of the time on a CPU is spent there. Raised thresholds
keep such pieces in the heap. Other C libraries (musl, macOS, Windows) are left alone.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's settings (malloc.h)."""
# larger pieces are logits of a whole batch: few, and giving them back at once keeps the peak down
_LARGEST_KEPT_BYTES = 1 << 30
# what is asked of the kernel beyond need each time the heap grows: an activation or two
_TOP_PAD_BYTES = 64 << 20


@cache
def keep_freed_memory() -> bool:
    """Raises the thresholds of glibc's malloc, once per process.

    Returns:
        Whether that was possible.

    Source: mallopt(3), M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES),
        # an int is what mallopt takes, so this is `never`
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(bool(mallopt(name, value)) for name, value in settings)


def give_back_freed_memory() -> None:
    """Gives the kernel what was freed and kept, so that memory in RAM is memory in use.

    Source: malloc_trim(3).
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    # mallopt and malloc_trim are glibc's; musl has none and macOS another allocator
    return platform.libc_ver()[0] == "glibc"
