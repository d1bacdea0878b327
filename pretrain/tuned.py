"""Probe, LoRA and full tuning of each backbone on the demo's tasks: pretrained against random weights, three seeds.

It uses DollarTune's own studies, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

LORA: dict[str, Any] = {"lora": {"rank": 8, "lr": 0.005}}
FULL: dict[str, Any] = {"full": {"lr": 0.0005}}
TEXTS = ("demo_library", "demo_match", "demo_summary")
PLANS: tuple[tuple[str, str, tuple[str, ...], tuple[Any, ...]], ...] = (
    ("tiny-vit", "classification", ("demo_digits",), ("head", LORA, FULL)),
    ("tiny-decoder", "language", TEXTS, ("zero_shot", "few_shot", LORA, FULL)),
    ("tiny-decoder", "classification", TEXTS[:2], ("head",)),
    ("tiny-encoder", "classification", TEXTS[:2], ("head", LORA, FULL)),
    ("tiny-seq2seq", "language", ("demo_library", "demo_summary"), ("zero_shot", LORA, FULL)),
    ("tiny-seq2seq", "classification", ("demo_library",), ("head",)),
)
"""Backbone, objective, tasks, methods. A probe is a new head on frozen features, so it needs `classification`."""

ROWS = 160
"""Training rows, and most validation and test rows."""

EPOCHS = 4
PARTS = ("random", "pretrained")


def measure(work: Path, output: Path, parts: tuple[str, ...] = PARTS, seeds: int = 3) -> None:
    """Runs the studies and writes the table; what has run already, and parts not asked for, are read from records."""
    from dollartune.study.api import Study

    frames: dict[tuple[str, str, str], Any] = {}
    for part in PARTS:
        for backbone, objective, tasks, methods in PLANS:
            settings = {"name": backbone, "objective": objective}
            control = {"random_weights_seed": 0} if part == "random" else {}
            wanted = [method for method in methods if part == "pretrained" or method not in ("zero_shot", "few_shot")]
            study = Study(
                name=f"{backbone}-{objective}-{part}", backbone={**settings, **control}, tasks=list(tasks),
                methods=wanted, scales=[ROWS], seeds=seeds, output=str(work / "tuned"),
                training={"epochs": EPOCHS, "batch_size": 16, "cohort_size": 6}, keep_adapters="none",
                evaluation={"rows": ROWS, "free_generation": False},
            )  # fmt: skip
            frame = (study.run() if part in parts else study.results()).frame()
            frames[backbone, objective, part] = frame[frame.scale == ROWS] if len(frame) else frame
            _write(frames, output, seeds)


def _compare(backbone: str, objective: str, tuned: Any, control: Any) -> list[dict[str, Any]]:
    rows = []
    for (task, method), group in tuned.groupby(["task", "method"], sort=False):
        row: dict[str, Any] = {"backbone": backbone, "objective": objective, "task": task, "method": method}
        same = control[(control.task == task) & (control.method == method)]
        for name, frame in (("pretrained", group), ("random", same)):
            scores = [float(score) for score in frame.get("score", []) if score == score]
            row[name] = round(statistics.mean(scores), 4) if scores else None
            row[f"{name}_deviation"] = round(statistics.stdev(scores), 4) if len(scores) > 1 else 0.0
            row[f"{name}_seeds"] = len(scores)
        rows.append(row)
    return rows


def _write(frames: dict[tuple[str, str, str], Any], output: Path, seeds: int) -> None:
    rows: list[dict[str, Any]] = []
    for backbone, objective, _, _ in PLANS:
        tuned, control = (frames.get((backbone, objective, part)) for part in ("pretrained", "random"))
        if tuned is not None and control is not None and len(tuned) and len(control):
            rows += _compare(backbone, objective, tuned, control)
    note = (
        f"{ROWS} training rows, {EPOCHS} epochs, at most {ROWS} test rows, {seeds} seeds: mean and standard deviation "
        "of the task's primary measure (accuracy; ROUGE-L for demo_summary). Chance: 0.125 for demo_library, 0.5 for "
        "demo_match, 0.1 for demo_digits. The learning rates were set once and not searched. "
        "Made by `python -m pretrain tuned`."
    )
    output.write_text(json.dumps({"note": note, "rows": rows}, indent=1) + "\n")
