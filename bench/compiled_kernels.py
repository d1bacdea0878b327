"""What oneDNN keeps of a product that it meets for the first time, on this processor: `planner.op_trace.COMPILED_BYTES`.

    python bench/compiled_kernels.py

Products of unlike numbers of rows are called once each, and what of the heap is in use afterwards is divided by how many there
were; glibc alone says so (mallinfo2). Sizes of matrices are those of small and middling backbones.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from dollartune.attachment.fast.cpu_linear import product
from dollartune.cli.output import print_table

WIDTHS = ((128, 512), (256, 256), (512, 128), (1536, 384))
ROWS = range(200, 1400, 64)
WARM = 2
"""Calls before the reading, for what is loaded once."""


class _HeapState(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _HeapState


def heap_bytes_in_use() -> int:
    state = _libc.mallinfo2()
    return int(state.uordblks + state.hblkhd)


def kept_bytes(call: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype) -> float:
    """Of one product: heap in use after many unlike ones, less what it was before, by their number."""
    inputs = [torch.randn(rows, width).to(dtype) for rows in ROWS]
    for x in inputs[:WARM]:
        call(x)
    before = heap_bytes_in_use()
    for x in inputs[WARM:]:
        call(x)
    return (heap_bytes_in_use() - before) / (len(inputs) - WARM)


def main() -> None:
    torch.set_num_threads(1)
    table = []
    for (width, wide), dtype in itertools.product(WIDTHS, (torch.float32, torch.bfloat16)):
        weight = torch.randn(wide, width).to(dtype)
        calls: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
            "x W' by oneDNN": (width, lambda x, w=weight: product(x, w, None)),
            "dy W by oneDNN": (wide, lambda x, w=weight: product(x, w.t(), None)),
            "dy' x by torch": (width, lambda x: x.t() @ x),
        }
        for name, (inner, call) in calls.items():
            kilobytes = kept_bytes(call, inner, dtype) / 1e3
            table.append({
                "product": name, "width": f"{width} to {wide}", "format": str(dtype).removeprefix("torch."),
                "KB kept of each": f"{kilobytes:.0f}",
            })  # fmt: skip
    print_table(table)


if __name__ == "__main__":
    main()
