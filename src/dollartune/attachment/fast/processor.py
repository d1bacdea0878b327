"""What this processor computes fast."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

_WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
"""Parts of the names of the instruction sets of oneDNN in which bf16 is multiplied in hardware. The others (AVX512_CORE,
AVX512_CORE_VNNI, AVX2, SSE41) are older: there oneDNN computes bf16 in steps, three times slower than fp32.

Source: oneDNN, developer guide, "CPU dispatcher control".
"""


def cpu_has_bf16() -> bool:
    """Whether bf16 matrices are multiplied in hardware here: the processor can (avx512_bf16 or amx_bf16), and oneDNN may.

    Whoever limits oneDNN to an older instruction set (`ONEDNN_MAX_CPU_ISA`) gets a processor without bf16.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return any(name in allowed.upper() for name in _WITH_BF16) and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


@cache
def is_intel() -> bool:
    """Whether the processor is Intel's, for which MKL is made."""
    information = Path("/proc/cpuinfo")
    # The first 4,000 characters: one core's entry, of files that list a hundred.
    return information.is_file() and "GenuineIntel" in information.read_text(errors="replace")[:4000]
