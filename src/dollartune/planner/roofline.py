"""How fast a machine does traced work: a roofline with a few numbers, from a data sheet or fitted to measured passes.

    seconds = sum over kernel calls of  launch + max(flops / rate of its kind, bytes / bandwidth)

On a GPU launches run ahead of the kernels, so that the larger of the two sums counts. Numbers are fitted in logarithms:
a data sheet's figure is where the fit begins and what it stays near where measurements say nothing.

Source: Williams, Waterman, Patterson (2009), Roofline: an insightful visual performance model for multicore architectures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dollartune.budget.prices import Machine
    from dollartune.planner.op_trace import Work

_PRIOR_SPREAD = 0.5
"""How far, in logarithms, a machine's numbers are expected to lie from a data sheet's: a factor of 1.6 either way."""
_MEASURED_SPREAD = 0.06
"""How exact a measured pass is, in logarithms: the medians of three steps differ by about 6 % from run to run. Much smaller, and
seven passes outvote the prior in figures that they hardly say anything about."""
LEAST_UNCERTAINTY, MOST_UNCERTAINTY = 0.15, 0.5
"""Bounds of what a fit says of itself. It has hardly more passes than numbers, so a small residual proves little: of the
settings of `make bench-planner`, which no fit has seen, two in forty were off by more than 15 %. Above a half it would say less
than no measurement does."""
UNMEASURED_GPU, UNMEASURED_CPU = 0.5, 0.6
"""Share by which seconds from a data sheet may be off. A processor's sheet says less: how many cores a rented one shares, and at
what clock, stands nowhere."""
GPU_LAUNCH_SECONDS, CPU_LAUNCH_SECONDS = 9e-6, 1.2e-5
"""Of one eager call from Python: dispatcher and autograd on both; on a processor also waking the other threads."""
CORE_HALF_FLOPS, CORE_SINGLE_FLOPS = 150e9, 60e9
"""A server core per second, with bf16 instructions and in fp32: AVX-512 at its clock under load. Only where a fit begins."""
CORE_EMULATED_FLOPS = 40e9
"""bf16 where the processor has no instruction for it: every operand is widened first, so it is slower than fp32."""
CORE_ATTENTION_SHARE = 0.4
"""Fused attention multiplies blocks of a head's width, smaller than a linear's, with a softmax between its two products."""
CORE_BYTES_PER_SECOND, CORES_THAT_FILL_MEMORY = 6e9, 4
"""What one core draws from memory, and how many cores share what a process gets before more of them gain nothing."""
CORE_SLOW_PER_SECOND = 0.5e9
"""Exponentials and random numbers of a core: a handful of cycles each, vectorized."""
CORE_DIRECT_GAIN = 1.5
"""Between 1 (Intel, where torch's MKL is as fast as oneDNN) and 2 (AMD, where it is half as fast)."""


@dataclass(frozen=True)
class Speed:
    """What a machine does per second."""

    matrix_half: float
    """FLOP/s of matrix products in bf16 or fp16."""
    matrix_single: float
    """FLOP/s of matrix products in fp32."""
    attention_share: float
    """Attention's FLOP/s as a share of a matrix product's."""
    bytes_per_second: float
    """Of kernels that only move data."""
    slow_per_second: float
    """Elements of transcendental functions and random numbers."""
    launch_seconds: float
    """Of one kernel call, with the Python around it."""
    direct_gain: float = 1.0
    """FLOP/s of fp32 products that go straight to oneDNN, as a multiple of those of the library that torch chooses."""
    overlapping: bool = False
    """Whether kernels run while the next ones are launched."""
    uncertainty: float = 0.5
    """Share by which a prediction may be off, either way."""
    source: str = ""

    def seconds(self, work: Work) -> float:
        """Predicted seconds."""
        return float(_seconds(_table(work), self._numbers(), self.overlapping))

    def _numbers(self) -> np.ndarray:
        return np.array([getattr(self, name) for name in _FITTED])

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Speed:
        return cls(**{f.name: data[f.name] for f in fields(cls)})


_FITTED = (
    "matrix_half", "matrix_single", "attention_share", "bytes_per_second", "slow_per_second", "launch_seconds",
    "direct_gain",
)  # fmt: skip

_VIEW_SHARE = 0.4
"""A view costs this share of a launch: Python and the dispatcher, but no kernel."""


def machine_speed(machine: Machine) -> Speed:
    """What real training gets out of a machine of the table: half of the peak in large products, less in attention.

    The shares are ordinary ones for eager PyTorch; how far a model's are from them only a measurement can say.
    """
    if machine.kind == "cuda":
        return Speed(
            # bf16 products of fine-tuning's narrow batches leave tensor cores waiting for tiles
            0.5 * machine.half_flops,
            0.7 * machine.single_flops,  # the fp32 units are slower, so they are easier kept busy
            0.6,  # head sizes of 64 to 128 make small tiles, and softmax runs between the two products
            # of the sheet's figure, which counts refreshes and row changes as time to read
            0.7 * machine.bandwidth_bytes,
            0.1 * machine.bandwidth_bytes,  # elements, not bytes: a few of 4 bytes each move per transcendental
            GPU_LAUNCH_SECONDS,
            overlapping=True,
            uncertainty=UNMEASURED_GPU,
            source=f"data sheet of {machine.device}",
        )
    return Speed(
        0.4 * machine.half_flops,
        0.5 * machine.single_flops,
        # A head's blocks are small, and the softmax between its products runs on one vector unit.
        0.3,
        0.25 * machine.bandwidth_bytes,  # of the socket's: one process of a few threads does not fill all channels
        0.4e9 * max(1, machine.vcpus // 2),  # a vCPU is half a core, and both halves share its vector unit
        CPU_LAUNCH_SECONDS,
        uncertainty=UNMEASURED_CPU,
        source=f"data sheet of {machine.device}",
    )


def core_speed(threads: int, half: bool) -> Speed:
    """Where the fit of an unknown processor begins: a present server core, times its threads."""
    return Speed(
        (CORE_HALF_FLOPS if half else CORE_EMULATED_FLOPS) * threads,
        CORE_SINGLE_FLOPS * threads,
        CORE_ATTENTION_SHARE,
        CORE_BYTES_PER_SECOND * min(threads, CORES_THAT_FILL_MEMORY),
        CORE_SLOW_PER_SECOND * threads,
        CPU_LAUNCH_SECONDS,  # not times the threads: one of them launches
        CORE_DIRECT_GAIN,
        uncertainty=UNMEASURED_CPU,
        source="supposed: a present server processor, not measured",
    )


def fitted(prior: Speed, works: Sequence[Work], seconds: Sequence[float], source: str) -> Speed:
    """The prior's numbers moved to where they explain measured passes best.

    minimizes  sum (log(predicted / measured) / 0.06)^2 + sum (log(number / prior number) / 0.5)^2
    """
    from scipy.optimize import least_squares

    tables = [_table(work) for work in works]
    start = np.log(prior._numbers())
    measured = np.log(np.array(seconds))

    def residuals(numbers: np.ndarray) -> np.ndarray:
        values = np.exp(numbers)
        predicted = np.array([_seconds(table, values, prior.overlapping) for table in tables])
        return np.concatenate([(np.log(predicted) - measured) / _MEASURED_SPREAD, (numbers - start) / _PRIOR_SPREAD])

    # Logarithms keep every number positive, and make "twice too fast" count as much as "twice too slow".
    solution = least_squares(residuals, start, max_nfev=200)
    # of the passes alone, without the prior's part
    squares = (residuals(solution.x)[: len(tables)] * _MEASURED_SPREAD) ** 2
    spread = math.sqrt(float(squares.mean()))
    numbers = dict(zip(_FITTED, map(float, np.exp(solution.x)), strict=True))
    uncertainty = min(MOST_UNCERTAINTY, max(LEAST_UNCERTAINTY, 2 * spread))  # two deviations: 95 % of passes
    return replace(prior, **numbers, uncertainty=uncertainty, source=source)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Table:
    """A work's kernels as columns."""

    kind: np.ndarray
    """0 half matrix, 1 single matrix, 2 half attention, 3 single attention, 4 slow, 5 plain, 6 view, 7 half matrix straight to
    oneDNN, 8 the same single."""
    flops: np.ndarray
    moved: np.ndarray
    count: np.ndarray


def _table(work: Work) -> _Table:
    kinds, flops, moved, count = [], [], [], []
    for kernel, times in work.calls.items():
        single = kernel.dtype not in ("bfloat16", "float16")
        kind = {"matrix": 0, "attention": 2, "slow": 4, "plain": 5, "view": 6, "direct": 7}[kernel.kind]
        kinds.append(kind + 1 if kind in (0, 2, 7) and single else kind)  # only products have a rate per number format
        flops.append(kernel.flops)
        moved.append(kernel.moved_bytes)
        count.append(times)
    return _Table(np.array(kinds, int), np.array(flops, float), np.array(moved, float), np.array(count, float))


def _seconds(table: _Table, numbers: np.ndarray, overlapping: bool) -> float:
    half, single, attention, bandwidth, slow, launch, gain = numbers
    # In the order of `_Table.kind`. Plain kernels and views take no arithmetic worth counting, so their FLOPs are free; oneDNN's
    # own path gains in fp32 alone, because torch sends bf16 to it anyway.
    rates = np.array([half, single, half * attention, single * attention, slow, np.inf, np.inf, half, single * gain])
    running = np.maximum(table.flops / rates[table.kind], table.moved / bandwidth)
    launches = np.where(table.kind == 6, _VIEW_SHARE * launch, launch)
    running, launches = float(running @ table.count), float(launches @ table.count)
    # On a GPU the host launches while kernels run, so the longer of the two is waited for; on a processor both are the same
    # thread.
    return max(running, launches) if overlapping else running + launches
