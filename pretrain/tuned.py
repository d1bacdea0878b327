"""Probe, LoRA and full tuning of each backbone on the demo's tasks: pretrained against random weights, three seeds.

It uses DollarTune's own studies, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

CLASSIFY: list[Any] = ["head", {"lora": {"rank": 8, "lr": 0.005}}, {"full": {"lr": 0.0005}}]
WRITE: list[Any] = ["zero_shot", "few_shot", {"lora": {"rank": 8, "lr": 0.005}}, {"full": {"lr": 0.0005}}]
PLANS: tuple[tuple[str, str, tuple[str, ...], list[Any]], ...] = (
    ("tiny-decoder", "language", ("demo_library", "demo_match", "demo_summary"), WRITE),
    ("tiny-decoder", "classification", ("demo_library", "demo_match"), CLASSIFY),
    ("tiny-encoder", "classification", ("demo_library", "demo_match"), CLASSIFY),
    ("tiny-vit", "classification", ("demo_digits", "demo_digits_new"), CLASSIFY),
    ("tiny-seq2seq", "language", ("demo_library", "demo_match", "demo_summary"), WRITE),
)
"""Backbone, objective, tasks, methods. A probe is a new head on frozen features: it needs the objective classification."""

ROWS = 300
"""Training rows, and most validation and test rows."""


def measure(work: Path, output: Path, seeds: int = 3) -> None:
    """Runs the studies and writes the table; what has run already is read from its records."""
    from dollartune.study.api import Study

    rows: list[dict[str, Any]] = []
    for backbone, objective, tasks, methods in PLANS:
        found: dict[bool, Any] = {}
        for random in (False, True):
            settings = {"name": backbone, "objective": objective, **({"random_weights_seed": 0} if random else {})}
            wanted = [method for method in methods if not (random and method in ("zero_shot", "few_shot"))]
            study = Study(
                name=f"{backbone}-{objective}-{'random' if random else 'pretrained'}", backbone=settings,
                tasks=list(tasks), methods=wanted, scales=[ROWS], seeds=seeds, output=str(work / "tuned"),
                training={"epochs": 5, "batch_size": 16}, evaluation={"rows": ROWS, "free_generation": False},
                keep_adapters="none",
            )  # fmt: skip
            found[random] = study.run().frame()
        rows += _compare(backbone, objective, found)
        _write(rows, output, seeds)


def _compare(backbone: str, objective: str, found: dict[bool, Any]) -> list[dict[str, Any]]:
    rows = []
    for (task, method), group in found[False].groupby(["task", "method"], sort=False):
        control = found[True][(found[True].task == task) & (found[True].method == method)]
        row = {"backbone": backbone, "objective": objective, "task": task, "method": method}
        for name, frame in (("pretrained", group), ("random", control)):
            scores = [float(score) for score in frame.get("score", []) if score == score]
            row[name] = statistics.mean(scores) if scores else None
            row[f"{name}_deviation"] = statistics.stdev(scores) if len(scores) > 1 else 0.0
            row[f"{name}_seeds"] = len(scores)
        rows.append(row)
    return rows


def _write(rows: list[dict[str, Any]], output: Path, seeds: int) -> None:
    note = (
        f"{ROWS} training rows, 5 epochs, at most {ROWS} test rows, {seeds} seeds: mean and standard deviation of the "
        "task's primary measure (accuracy; ROUGE-L for demo_summary). Chance: 0.125 for demo_library, 0.5 for "
        "demo_match, 0.1 for demo_digits, 0.25 for demo_digits_new. Made by `python -m pretrain tuned`."
    )
    output.write_text(json.dumps({"note": note, "rows": rows}, indent=1) + "\n")
