"""Is the reported cost of a request what a request costs? Each method's figure in its record beside the server's own answers.

    python bench/request_cost.py [--backbone tiny-decoder] [--repeats 5]

A study of eight methods is run on generated texts with `keep_adapters: all`; then each adapter is opened as a user opens it and
answers texts that the study has never seen, one by one, by `predict_rows`, which the server's /v1/classify calls: what
`alone_seconds` promises. Both are measured in turns of one run and compared by ratio. Exit status 1 where a ratio is off by
more than 15 %.

Reading and tokenizing a request is no part of the record: it is measured beside and taken off. On a machine that others use
the wall clock times the neighbours as well; `--clock cpu` counts this process's own time, with one thread the same on a
machine of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dollartune import open_adapter
from dollartune.engines.display import Display
from dollartune.evaluate.cost import REQUESTS, request_cost
from dollartune.evaluate.predict import Tuned, predict_rows
from dollartune.study.api import Study

METHODS: list[Any] = [
    "lora", {"lora": {"layers": "last 1"}}, "ia3", "bitfit", "prompt", "prefix", "houlsby", "full",
]  # fmt: skip
WITHIN = 0.15
TEXTS = range(10_000, 10_000 + REQUESTS)
"""Asked by both ways in every turn, as many as a record's figure is of. A request's time goes with its length: with other texts
for each the ratio was up to a sixth off, whatever the method."""


WORDS = (
    "the", "a", "train", "late", "café", "good", "awful", "service", "waited", "hour", "clean", "friendly", "never", "again",
    "booked", "window", "seat",
)  # fmt: skip


def rows(count: int, begin: int) -> list[dict[str, str]]:
    """Texts of 30 to 50 words, other ones for each `begin`."""
    made = []
    for n in range(begin, begin + count):
        text = " ".join(WORDS[(n * 7 + k * (3 + n % 5)) % len(WORDS)] for k in range(30 + n % 20))
        made.append({"text": f"{text} {n}", "label": "good" if n % 2 else "bad"})
    return made


def run_study(backbone: str, folder: Path) -> Study:
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(120, 0)))
    study = Study(
        {
            "backbone": backbone, "task": {"data": str(data), "text": "text", "label": "label"}, "methods": METHODS,
            "scales": [24], "seeds": 1, "baselines": False, "training": {"epochs": 1, "validation_rows": 8},
            "evaluation": {"rows": 16, "free_generation": False, "forgetting": False}, "keep_adapters": "all",
            "output": str(folder),
        }
    )  # fmt: skip
    study.run(display=Display())
    return study


def served(tuned: Tuned, asked: list[dict[str, str]]) -> list[float]:
    """Seconds of each request, alone."""
    found = []
    for row in asked:
        began = time.perf_counter()
        predict_rows(tuned, [row], 1)
        found.append(time.perf_counter() - began)
    return found


def text_seconds(tuned: Tuned, asked: list[dict[str, str]]) -> float:
    """Reading and tokenizing one request."""
    from dollartune.tasks.base import Example

    found = []
    for row in asked:
        example = Example("0", dict(row), tuned.task.labels[0] if tuned.task.labels else None, "")
        began = time.perf_counter()
        tuned.evaluator(1).encode([example], None, 0)
        found.append(time.perf_counter() - began)
    return median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-decoder")
    parser.add_argument("--repeats", type=int, default=5, help="turns of both measurements")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.clock == "cpu":
        time.perf_counter = time.process_time  # for `request_cost` and for this script alike
    off = 0
    print("| method | in the record, ms | measured again, ms | as served, ms | reading it, ms | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(options.backbone, Path(folder))
        for record in study.results().done():
            tuned = open_adapter(study.store.folder(record.id) / "adapter")
            from dollartune.tasks.base import Example

            label = tuned.task.labels[0]
            measured, answers = [], []
            served(tuned, rows(3, 5_000))  # the first ones allocate and choose kernels
            for _ in range(options.repeats):
                asked = rows(len(TEXTS), TEXTS.start)
                examples = [Example(str(i), dict(row), label, "") for i, row in enumerate(asked)]
                measured.append(request_cost(tuned.evaluator(8), tuned.name, tuned.methods, examples).alone_seconds)
                answers.append(median(served(tuned, asked)))
            reading = text_seconds(tuned, asked)
            # The turn on the quietest machine of each: noise of a shared machine only ever adds time.
            said, real = min(measured), min(answers) - reading
            ratio = said / real
            off += abs(ratio - 1) > WITHIN
            recorded = record.inference.alone_seconds if record.inference is not None else None
            print(
                f"| {record.trial.label} | {1000 * (recorded or 0):.2f} | {1000 * said:.2f} | {1000 * real:.2f} | "
                f"{1000 * reading:.2f} | {ratio:.2f} |",
                flush=True,
            )
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
