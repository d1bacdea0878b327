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
"""How far, in logarithms, a machine's numbers are expected to lie from a data sheet's."""
_MEASURED_SPREAD = 0.06
"""How exact a measured pass is."""


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

    def to_json(self) -> dict[str, Any]:
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
            0.5 * machine.half_flops,
            0.7 * machine.single_flops,
            0.6,
            0.7 * machine.bandwidth_bytes,
            0.1 * machine.bandwidth_bytes,
            9e-6,
            overlapping=True,
            uncertainty=0.5,
            source=f"data sheet of {machine.device}",
        )
    return Speed(
        0.4 * machine.half_flops,
        0.5 * machine.single_flops,
        0.3,
        0.25 * machine.bandwidth_bytes,
        0.4e9 * max(1, machine.vcpus // 2),
        1.2e-5,
        uncertainty=0.6,
        source=f"data sheet of {machine.device}",
    )


def core_speed(threads: int, half: bool) -> Speed:
    """Where the fit of an unknown processor begins: a present server core, times its threads."""
    return Speed(
        (150e9 if half else 40e9) * threads, 60e9 * threads, 0.4, 6e9 * min(threads, 4), 0.5e9 * threads, 1.2e-5, 1.5,
        uncertainty=0.6, source="supposed: a present server processor, not measured",
    )  # fmt: skip


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

    found = least_squares(residuals, start, max_nfev=200)
    left = (residuals(found.x)[: len(tables)] * _MEASURED_SPREAD) ** 2
    spread = math.sqrt(float(left.mean()))
    numbers = dict(zip(_FITTED, map(float, np.exp(found.x)), strict=True))
    return replace(prior, **numbers, uncertainty=min(0.5, max(0.15, 2 * spread)), source=source)  # type: ignore[arg-type]


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
        kinds.append(kind + 1 if kind in (0, 2, 7) and single else kind)
        flops.append(kernel.flops)
        moved.append(kernel.moved_bytes)
        count.append(times)
    return _Table(np.array(kinds, int), np.array(flops, float), np.array(moved, float), np.array(count, float))


def _seconds(table: _Table, numbers: np.ndarray, overlapping: bool) -> float:
    half, single, attention, bandwidth, slow, launch, gain = numbers
    rates = np.array([half, single, half * attention, single * attention, slow, np.inf, np.inf, half, single * gain])
    running = np.maximum(table.flops / rates[table.kind], table.moved / bandwidth)
    launches = np.where(table.kind == 6, _VIEW_SHARE * launch, launch)
    running, launches = float(running @ table.count), float(launches @ table.count)
    return max(running, launches) if overlapping else running + launches
