"""What this machine's matrix products can do, on the shapes of a model: the ceiling that nothing can exceed.

python bench/ceiling.py
"""

from __future__ import annotations

import statistics
import time

import torch

SHAPES = ((768, 768), (768, 3072), (3072, 768))
"""(in, out) of OPT-125m's linears; four of the first and one of each other make a layer."""
TOKENS = 1200


def gflops(dtype: torch.dtype, seconds: float = 1.0, device: str = "cpu") -> float:
    """GFLOP/s of x Wᵀ over the shapes, weighted as in a layer; for each shape the median of the faster half of many runs.

    The best of the ways to call it (plain, and oneDNN's own operator on a CPU) counts.
    """
    total_flops = total_seconds = 0.0
    for (inputs, outputs), times in zip(SHAPES, (4, 1, 1), strict=True):
        x, weight = (
            torch.randn(TOKENS, inputs, dtype=dtype, device=device),
            torch.randn(outputs, inputs, dtype=dtype, device=device),
        )
        ways = [lambda x=x, w=weight: torch.nn.functional.linear(x, w)]
        if device == "cpu":
            ways.append(lambda x=x, w=weight: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
        best = min(_seconds(way, seconds / len(SHAPES) / len(ways), device) for way in ways)
        total_flops += times * 2 * TOKENS * inputs * outputs
        total_seconds += times * best
    return total_flops / total_seconds / 1e9


def _seconds(way: object, seconds: float, device: str) -> float:
    found: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(found) < 5:
        started = time.perf_counter()
        way()  # type: ignore[operator]
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(sorted(found)[: max(1, len(found) // 2)])


def measure_ceiling(seconds: float = 2.0) -> dict[str, float]:
    """GFLOP/s in bf16 and fp32."""
    return {"bf16": gflops(torch.bfloat16, seconds / 2), "fp32": gflops(torch.float32, seconds / 2)}


if __name__ == "__main__":
    print(
        {name: round(value) for name, value in measure_ceiling().items()},
        "GFLOP/s,",
        torch.get_num_threads(),
        "threads",
    )
