"""Trying again after memory ran out: what counts as such an error, and how much less is tried next.

    16 rows per pass ──out of memory──> 8 ──out of memory──> 4 ──> goes on with 4, in four passes per step

One policy for training, evaluating and whole cohorts: half of it, until one row or trial at a time was too much.
"""

from __future__ import annotations

import logging

import torch

log = logging.getLogger("dollartune")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # torch's allocator on a processor knows no error of its own, and what its kernels allocate beside it is C++'s
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "std::bad_alloc"))
    )


def halved_after_out_of_memory(error: BaseException, size: int, what: str) -> int | None:
    """How many rows or trials to try next, after an attempt with `size` of them at a time failed. The caller does the same
    work again in more passes, so no result changes.

    Args:
        error: what ended the attempt.
        what: the unit for the log, for example `rows per pass`.

    Returns:
        Half of them, rounded up; None where the error is another one, or where one at a time was too much already.
    """
    if size <= 1 or not is_out_of_memory(error):
        return None
    smaller = (size + 1) // 2  # halving reaches any size in a few attempts, each of which costs a step at most
    log.warning("out of memory: trying again with %d %s", smaller, what)
    return smaller
