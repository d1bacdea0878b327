"""Training, one trial at a time: the same losses, tokens per second, share of the ceiling, peak memory; every method."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import peers
import table
from ceiling import measure_ceiling
from contest import contestants, in_turns, ratios

LAYER_PARAMETERS = 7_087_872
"""Of each of OPT-125m's 12 layers; embeddings cost nothing, and the head is needed at answers alone."""
FLOPS = 4
"""Per parameter and token: forward, and backward through activations."""
BEST = {"task": "train", "side": "peer", "shape": "opt-125m", "best": True, "rows": 64, "batch": 8}

_COUNTED = "every layer counts whole, though of the last one only what is read is computed"


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """All cases of this file."""
    with tempfile.TemporaryDirectory() as folder:
        return [*same_losses(Path(folder)), *first_case(Path(folder), quick), *every_method(Path(folder), quick)]


def same_losses(folder: Path) -> list[dict[str, Any]]:
    """Both sides compute the same; without that no time means anything.

    Raises:
        SystemExit: they do not.
    """
    with contestants([{"task": "curve", "side": "curve"}], folder) as (both,):
        found = both.ask("run")
    if not found["equal"]:
        raise SystemExit(f"ours and peft's losses differ by {found['difference']:.1e}: {found['ours']} {found['peer']}")
    case = "the same loss curve in fp32, 12 steps (largest relative difference)"
    return [table.row(case, found["difference"], None, None, "at most 2e-4", True)]


def first_case(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """LoRA r=8 on q, v of OPT-125m's shape, 64 rows of BoolQ's lengths, batches of eight."""
    layers = 2 if quick else 12
    shared = {**BEST, "methods": ["lora"], "layers": layers}
    specs = [
        {**shared, "side": "ours", "methods": [peers.OURS["lora"]]},
        {**shared, "best": False},
        shared,
    ]
    turns, steps = (2, 1) if quick else (3, 3)
    before = measure_ceiling()
    with contestants(specs, folder) as workers:
        found = in_turns(workers, turns, "steps", steps)
        whole = [
            worker.ask("steps", rest) for worker, rest in zip(workers, (2, 1, 1) if quick else (8, 1, 3), strict=True)
        ]
    after = measure_ceiling()  # the longest rows have passed on every side when its memory is read
    ceiling = {name: statistics.mean((before[name], after[name])) for name in before}
    rates = [[answer["tokens"] / answer["seconds"] for answer in answers] for answers in found]
    medians = [statistics.median(own) for own in rates]
    name = "OPT-125m shape, BoolQ lengths, LoRA r=8 q,v: tokens/s"
    rows = []
    for index, what, bar in ((1, "defaults", 5.0), (2, "at its best", 2.0)):
        ratio = ratios(rates[0], rates[index])
        case = f"{name} against peft + Trainer, {what}"
        rows.append(table.row(case, medians[0], medians[index], ratio, f">= {bar:g}x", ratio[0] >= bar))
    shares = [FLOPS * layers * LAYER_PARAMETERS * rate / ceiling["bf16"] / 1e9 for rate in rates[0]]
    share = statistics.median(shares)
    note = ", ".join(f"{key} {value:.0f} GFLOP/s" for key, value in ceiling.items())
    theirs = FLOPS * layers * LAYER_PARAMETERS * medians[2] / ceiling["bf16"] / 1e9
    rows.append(
        table.row("share of the matrix-product ceiling (bf16) in that case", share, theirs,
                  (share, min(shares), max(shares)), ">= 0.5", share >= 0.5, f"ceiling: {note}; {_COUNTED}")
    )  # fmt: skip
    peaks = [answer["peak_bytes"] / 2**20 for answer in whole]
    ratio_of_peaks = peaks[0] / peaks[1]
    rows.append(
        table.row("peak memory in that case, MiB", peaks[0], peaks[1], (ratio_of_peaks,) * 3, "<= 0.5x", ratio_of_peaks <= 0.5,
                  f"whole process; peft at its best {peaks[2]:.0f} MiB")
    )  # fmt: skip
    return rows


def every_method(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Each other method that peft has, against peft at its best: one step of eight rows at a time, in turns."""
    names = ["dora", "prompt"] if quick else [name for name in peers.OURS if name != "lora"]
    lengths = [60, 85, 100, 115, 130, 150, 180, 240]
    shared = {**BEST, "lengths": lengths, "methods": names, "layers": 2 if quick else 12}
    specs = [{**shared, "side": "ours", "methods": [peers.OURS[name] for name in names]}, shared]
    rows = []
    with contestants(specs, folder) as workers:
        for number, name in enumerate(names):
            found = in_turns(workers, 2 if quick else 3, "steps", 1)
            case, bar = f"{name}: tokens/s against peft + Trainer at its best", ">= 1.3x"
            if errors := [answer["error"] for answer in found[1] if "error" in answer]:
                rows.append(table.row(case, None, None, None, bar, None, f"peft does not run: {errors[0]}"))
            else:
                rates = [[answer["tokens"] / answer["seconds"] for answer in answers] for answers in found]
                ratio = ratios(*rates)
                rows.append(table.row(case, *map(statistics.median, rates), ratio, bar, ratio[0] >= 1.3))
            if number + 1 < len(names):
                for worker in workers:
                    worker.ask("next")
    return rows
