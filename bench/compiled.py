"""Compiled layers and replayed passes against plain ones, on this machine: what `compile: auto` and CUDA graphs go by.

    python bench/compiled.py [--quick]

OPT-125m's shape, LoRA r=8 on q, v, eight rows of BoolQ's lengths a step. On a processor nothing is replayed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import ours
import shapes
import table
import torch

from dollartune.attachment.attached import Attached
from dollartune.methods.registry import build_method
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState


class _Timed(Silent):
    """Notes the time and the tokens of every step."""

    def __init__(self) -> None:
        self.marks = [(time.perf_counter(), 0)]

    def stepped(self, trial: TrialState) -> None:
        self.marks.append((time.perf_counter(), trial.progress.tokens))


class _Case:
    """One way to train, over and over."""

    def __init__(self, found: Any, rows: Any, compiled: bool, replayed: bool) -> None:
        self.found, self.rows, self.compiled, self.replayed = found, rows, compiled, replayed

    def run(self, steps: int) -> tuple[float, float]:
        """Tokens per second over the last half of the steps, and seconds of all of them."""
        attached = Attached(self.found.model, self.found.anatomy)
        adapter = attached.add("a", [build_method("lora(rank=8, where='self_attn.q self_attn.v')")])
        settings = TrainingSettings(
            epochs=100_000, batch_size=8, patience=None, compile="always" if self.compiled else "never"
        )
        watcher = _Timed()
        trial = TrialState("a", adapter, self.rows, settings, seed=0)
        trainer = CohortTrainer(
            self.found, attached, [trial], [], watcher, out_of_time=lambda: len(watcher.marks) > steps
        )
        if not self.replayed:
            trainer.forward_backward.cuda_graphs.new = None
        trainer.run()
        attached.detach()
        (start, before), (end, after) = watcher.marks[len(watcher.marks) // 2], watcher.marks[-1]
        return (after - before) / (end - start), end - watcher.marks[0][0]


def _row(case: str, ways: tuple[_Case, _Case], quick: bool, note: str) -> dict[str, Any]:
    """Two ways in turns; what the first one's first turn takes longer than the other's is compiling."""
    steps, turns = (4, 1) if quick else (16, 5)
    first = [way.run(steps)[1] for way in ways]
    rates = [[way.run(steps)[0] for way in ways] for _ in range(turns)]
    ratios = sorted(mine / plain for mine, plain in rates)
    middle = [statistics.median(rate[i] for rate in rates) for i in range(2)]
    note = note.format(seconds=first[0] - first[1])
    return table.row(case, *middle, (statistics.median(ratios), ratios[0], ratios[-1]), "", None, note)


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Compiled layers; on a GPU, replayed passes too. `peer` is the plain way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = ours.backbone("opt-125m", device=device, layers=2 if quick else 12)
    rows = ours.encoded(shapes.token_rows(shapes.boolq_lengths(64)))
    plain = _Case(found, rows, False, False)
    case = f"{device.upper()}: OPT-125m shape, LoRA, layers compiled against plain ones, tokens/s"
    note = "{seconds:.0f} s to compile; `compile: auto` leaves a processor's layers alone"
    made = [_row(case, (_Case(found, rows, True, False), plain), quick, note)]
    if device == "cuda":
        case = "CUDA: the same with passes replayed against plain ones, tokens/s"
        made.append(_row(case, (_Case(found, rows, False, True), plain), quick, ""))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    torch.manual_seed(0)
    table.show(measure(parser.parse_args().quick))
