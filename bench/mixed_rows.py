"""Rows of 32 adapters of different methods in one batch, against the same batch through one adapter; and attaching them.

    python bench/mixed_rows.py

Backbone of OPT-125m's shape, a batch of 32 rows. Measured in turns (one adapter, 32 adapters, one adapter ...); the ratio
of the medians counts, the spread is that of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from shapes import opt

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.stacking import StackedAdapters
from dollartune.backbones.loading import anatomy_of
from dollartune.methods.registry import build_method
from dollartune.testing.practice import perturb

KINDS = (["lora(rank=8)"] * 8 + ["lora(rank=4)"] * 6 + ["ia3"] * 6 + ["bitfit"] * 6 + ["pfeiffer(reduction=16)"] * 6)  # fmt: skip
ROWS, TOKENS = 32, 32
FORWARD_BAR, ATTACH_BAR = 1.15, 1.2


def _row(case: str, ours: list[float], single: list[float], bar: float, note: str) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, single, strict=True)]
    ratio = statistics.median(ours) / statistics.median(single)
    low, *_, high = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else (ratio, ratio)
    return {
        "case": case,
        "ours": statistics.median(ours) * 1000,
        "peer": statistics.median(single) * 1000,
        "ratio": ratio,
        "low": low,
        "high": high,
        "bar": f"at most {bar:g}x",
        "passed": ratio <= bar,
        "note": note,
    }


def _timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def forward(repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One forward pass of 32 rows."""
    model = opt(dtype=torch.float32)
    attached = Attached(model, anatomy_of(model))
    adapters = {}
    for number, kind in enumerate(KINDS):
        adapters[f"a{number}"] = attached.add(f"a{number}", [build_method(kind)], number)
        perturb(adapters[f"a{number}"], 0.05, number)
    route, at = [], 0
    for kind in dict.fromkeys(KINDS):  # adapters of equal structure are stacked, as the server does
        group = [adapters[f"a{n}"] for n, other in enumerate(KINDS) if other == kind]
        gathered: Any = StackedAdapters(group).gather(torch.arange(len(group)))
        route.append(Assignment(gathered, slice(at, at + len(group))))
        at += len(group)
    ids = torch.randint(5, 1000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    keep = torch.arange(ROWS), torch.full((ROWS,), TOKENS - 1)

    def pass_through(*assignments: Assignment) -> Callable[[], Any]:
        def work() -> Any:
            with torch.inference_mode(), attached.routed(*assignments, batch_rows=ROWS):
                return attached(keep=keep, **inputs).logits

        return work

    single, many = pass_through(Assignment(adapters["a0"], slice(None))), pass_through(*route)
    together = many()[0]
    for row, name in enumerate(list(adapters)[:: len(KINDS) // 4]):  # each row's result is that of its adapter alone
        place = row * (len(KINDS) // 4)
        alone = pass_through(Assignment(adapters[name], slice(None)))()[0, place]
        torch.testing.assert_close(together[place], alone, rtol=1e-3, atol=1e-3)
    single()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        times[0].append(_timed(many, clock))
        times[1].append(_timed(single, clock))
    note = f"ms per pass of {ROWS} rows x {TOKENS} tokens; 32 adapters of {len(set(KINDS))} kinds against one LoRA"
    return _row("forward with 32 mixed adapters in a batch / one adapter", *times, FORWARD_BAR, note)


def attaching(repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Building and attaching an adapter beside 31 others, against doing so on a bare backbone."""
    model = opt(dtype=torch.float32)
    crowded, empty = Attached(model, anatomy_of(model)), Attached(model, anatomy_of(model))
    for number, kind in enumerate(KINDS[1:]):
        crowded.add(f"a{number}", [build_method(kind)], number)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):
        for found, attached in zip(times, (crowded, empty), strict=True):
            found.append(_timed(lambda attached=attached: attached.add("new", [build_method(KINDS[0])], 7), clock))  # type: ignore[misc]
            attached.remove("new")
    note = "ms to build and attach LoRA r=8 on q, v of 12 layers"
    return _row("attaching the 32nd adapter / the first", times[0][2:], times[1][2:], ATTACH_BAR, note)


def measure(quick: bool = False, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Both rows; `quick` repeats less."""
    repeats = 5 if quick else 21
    return [forward(repeats, clock), attaching(repeats, clock)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a machine that others use too")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(json.dumps(measure(arguments.quick, clock), indent=2))
