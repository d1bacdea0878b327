"""Eight trials at once: on the last half of the layers against peft, one after another; and a tiny model against itself.

    python bench/cohorts.py [--quick] [--cpu-time] [--only peft|tiny]

Against peft: OPT-125m's shape, rows of AG News's lengths, three epochs of eight rows a step. Ours is timed from the first
step to the last, with the trunk's one pass and all validation left out on both sides; peft's seconds are those of its steps
after the first, times the number of steps. Methods that peft has not (BitFit, bottleneck adapters) run as its LoRA there.
The tiny model: every layer is trained, so there is no trunk; what is gained is gained by sharing passes.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import ours
import peers
import shapes
import table
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.methods.registry import build_method
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.precision import choose_dtype
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

Clock = Callable[[], float]
BATCH = 8
LAST_HALF = (
    ("lora(rank=8, layers='last 50%')", "lora"),
    ("lora(rank=8, lr=0.001, layers='last 50%')", "lora"),
    ("ia3(layers='last 50%')", "ia3"),
    ("ia3(lr=0.002, layers='last 50%')", "ia3"),
    ("bitfit(layers='last 50%')", "lora"),
    ("pfeiffer(reduction=16, layers='last 50%')", "lora"),
    ("norm(where='norm', layers='last 50%')", "norm"),
    ("vera(rank=256, layers='last 50%')", "vera"),
)
"""(ours, peft's)"""
MIXED = (
    "lora(rank=8)", "lora(rank=4)", "ia3", "bitfit", "pfeiffer(reduction=8)", "prompt(tokens=8)", "norm", "prefix(tokens=4)",
)  # fmt: skip


def _train(
    found: Backbone, methods: Sequence[str], rows: list[Encoded], epochs: int, clock: Clock, lanes: bool = True
) -> float:
    """Seconds of a cohort, trunk and all; without `lanes`, all trials share each pass."""
    attached = Attached(found.model, found.anatomy)
    settings = TrainingSettings(epochs=epochs, batch_size=BATCH, patience=None)
    trials = []
    for seed, method in enumerate(methods):
        adapter = attached.add(str(seed), [build_method(method)], seed)
        trials.append(TrialState(str(seed), adapter, rows, settings, seed))
    trainer = CohortTrainer(found, attached, trials, [])
    started = clock()
    if lanes:
        trainer.run()
    else:
        with trainer.ready():
            while running := [trial for trial in trials if not trial.done]:
                trainer.train_step(running)
    seconds = clock() - started
    attached.detach()
    return seconds


def _peft_step(base: Any, method: str, layers: range, rows: Any, best: bool, steps: int, clock: Clock) -> float:
    """Seconds of one step of peft's, the first one left out."""
    from peft import get_peft_model

    settings = peers.config(method)
    inside = rf".*layers\.({'|'.join(map(str, layers))})\."
    if getattr(settings, "feedforward_modules", None):
        settings.feedforward_modules = f"{inside}(.*\\.)?({'|'.join(settings.feedforward_modules)})"
    settings.target_modules = f"{inside}(.*\\.)?({'|'.join(settings.target_modules)})"
    model = get_peft_model(copy.deepcopy(base), settings)
    times: list[float] = []

    def stepped(tokens: int) -> bool:
        times.append(clock())
        return len(times) <= steps

    with tempfile.TemporaryDirectory() as folder:
        peers.trainer(
            model, rows, folder, stepped, per_device_train_batch_size=BATCH, max_steps=1000, learning_rate=5e-4,
            **(peers.BEST if best else {}),
        ).train()  # fmt: skip
    return (times[-1] - times[0]) / (len(times) - 1)


def against_peft(quick: bool, clock: Clock) -> list[dict[str, Any]]:
    """Against peft with defaults, and at its best."""
    layers, turns = (2, 1) if quick else (12, 3)
    rng = random.Random(0)
    lengths = [max(24, min(140, int(rng.gauss(64, 16)))) for _ in range(16 if quick else 32)]
    data = shapes.token_rows(lengths)
    found = ours.backbone("opt-125m", layers=layers)
    bases = {best: peers.model_of("opt-125m", best, "cpu", layers) for best in (False, True)}
    examples = peers.examples(data)
    steps = 3 * -(-len(data) // BATCH)
    half = range(layers // 2, layers)
    names = [theirs for _, theirs in LAST_HALF]
    mine: list[float] = []
    peer: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(turns):
        mine.append(_train(found, [own for own, _ in LAST_HALF], ours.encoded(data), 3, clock))
        for best, seconds in peer.items():
            measured = {
                name: _peft_step(bases[best], name, half, examples, best, 2, clock) for name in dict.fromkeys(names)
            }
            seconds.append(sum(measured[name] for name in names) * steps)
    rows = []
    for best, seconds in peer.items():
        ratios = sorted(b / a for a, b in zip(mine, seconds, strict=True))
        ratio = statistics.median(ratios)
        what = "at its best" if best else "with defaults"
        case = f"eight trials on the last half of the layers, 3 epochs, against one after another with peft {what}, s"
        bar, passed = (">= 6x", ratio >= 6) if not best else ("", None)
        note = f"{layers} layers, {len(data)} rows"
        found_row = (ratio, ratios[0], ratios[-1])
        rows.append(table.row(case, statistics.median(mine), statistics.median(seconds), found_row, bar, passed, note))
    return rows


def tiny_cohort(quick: bool, clock: Clock) -> list[dict[str, Any]]:
    """tiny-decoder: eight mixed trials together, in lanes and in one pass, against alone, one after another."""
    found = load_backbone("tiny-decoder", dtype=choose_dtype(TrainingSettings(), 256, torch.device("cpu")))
    rng = random.Random(0)
    size = found.model.config.vocab_size
    data = ours.encoded(shapes.token_rows([rng.randint(16, 48) for _ in range(16 if quick else 64)], vocabulary=size))
    epochs, turns = (1, 1) if quick else (2, 7)
    for methods in (
        MIXED,
        MIXED[:1],
    ):  # both sides in a process that has the memory already, as in a study's later trials
        _train(found, methods, data, epochs, clock)
    together, shared, alone = [], [], []
    for _ in range(turns):
        together.append(_train(found, MIXED, data, epochs, clock))
        shared.append(_train(found, MIXED, data, epochs, clock, lanes=False))
        alone.append(sum(_train(found, [method], data, epochs, clock) for method in MIXED))
    rows = []
    for seconds, what, bar in ((together, "as a cohort", 1.5), (shared, "in one pass on all cores", None)):
        ratios = sorted(b / a for a, b in zip(seconds, alone, strict=True))
        ratio = statistics.median(ratios)
        case = f"tiny-decoder, eight mixed trials {what} against alone, one after another, s"
        middle = statistics.median(seconds), statistics.median(alone)
        held = "" if bar is None else f">= {bar}x", None if bar is None else ratio >= bar
        rows.append(table.row(case, *middle, (ratio, ratios[0], ratios[-1]), *held))
    return rows


def measure(quick: bool = False, clock: Clock = time.perf_counter, only: str = "") -> list[dict[str, Any]]:
    """All rows, or those `against_peft` (`peft`) or of the `tiny` model."""
    rows = [] if only == "tiny" else against_peft(quick, clock)
    return rows if only == "peft" else [*rows, *tiny_cohort(quick, clock)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a machine that others use too")
    parser.add_argument("--only", choices=("peft", "tiny"), default="")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(json.dumps(measure(arguments.quick, clock, arguments.only), indent=2))
