"""Probe, LoRA and full tuning of each backbone on the demo's tasks: pretrained against random weights, three seeds.

It uses DollarTune's own studies, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LORA: dict[str, Any] = {"lora": {"rank": 8, "lr": 0.005}}
FULL: dict[str, Any] = {"full": {"lr": 0.0005}}
TEXTS = ("demo_library", "demo_match", "demo_summary")
MATCH: tuple[Any, ...] = ("head", {"lora": {"rank": 8, "lr": 0.001}}, {"full": {"lr": 0.0001}})
ROWS, EPOCHS = 160, 4
MATCH_ROWS, MATCH_EPOCHS = 1500, 3
"""To tell a function's summary from another's is harder than the other tasks: no backbone learns it from 160 rows."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One study. A probe is a new head on frozen features, so it needs `classification`."""

    backbone: str
    objective: str
    tasks: tuple[str, ...]
    methods: tuple[Any, ...]
    rows: int = ROWS
    """Training rows."""
    epochs: int = EPOCHS
    test_rows: int = ROWS
    name: str = ""


PLANS = (
    Plan("tiny-vit", "classification", ("demo_digits",), ("head", LORA, FULL)),
    Plan("tiny-decoder", "language", TEXTS, ("zero_shot", "few_shot", LORA, FULL)),
    Plan("tiny-decoder", "classification", TEXTS[:2], ("head",)),
    Plan("tiny-encoder", "classification", TEXTS[:2], ("head", LORA, FULL)),
    Plan("tiny-encoder", "classification", TEXTS[1:2], MATCH, MATCH_ROWS, MATCH_EPOCHS, 400, "-match"),
    Plan("tiny-seq2seq", "language", ("demo_library", "demo_summary"), ("zero_shot", LORA, FULL)),
    Plan("tiny-seq2seq", "classification", ("demo_library",), ("head",)),
)
PARTS = ("random", "pretrained")


def measure(work: Path, output: Path, parts: tuple[str, ...] = PARTS, seeds: int = 3) -> None:
    """Runs the studies and writes the table; what has run already, and parts not asked for, are read from records."""
    from dollartune.study.api import Study

    frames: dict[tuple[Plan, str], Any] = {}
    for part in PARTS:
        for plan in PLANS:
            settings = {"name": plan.backbone, "objective": plan.objective}
            control = {"random_weights_seed": 0} if part == "random" else {}
            wanted = [
                method for method in plan.methods if part == "pretrained" or method not in ("zero_shot", "few_shot")
            ]
            study = Study(
                name=f"{plan.backbone}-{plan.objective}-{part}{plan.name}", backbone={**settings, **control},
                tasks=list(plan.tasks), methods=wanted, scales=[plan.rows], seeds=seeds, output=str(work / "tuned"),
                training={"epochs": plan.epochs, "batch_size": 16, "cohort_size": 6}, keep_adapters="none",
                evaluation={"rows": plan.test_rows, "free_generation": False},
            )  # fmt: skip
            frame = (study.run() if part in parts else study.results()).frame()
            frames[plan, part] = frame[frame.scale == plan.rows] if len(frame) else frame
            _write(frames, output, seeds)


def _compare(plan: Plan, tuned: Any, control: Any) -> list[dict[str, Any]]:
    rows = []
    for (task, method), group in tuned.groupby(["task", "method"], sort=False):
        row: dict[str, Any] = {"backbone": plan.backbone, "objective": plan.objective, "task": task, "method": method}
        row["rows"] = plan.rows
        same = control[(control.task == task) & (control.method == method)]
        for name, frame in (("pretrained", group), ("random", same)):
            scores = [float(score) for score in frame.get("score", []) if score == score]
            row[name] = round(statistics.mean(scores), 4) if scores else None
            row[f"{name}_deviation"] = round(statistics.stdev(scores), 4) if len(scores) > 1 else 0.0
            row[f"{name}_seeds"] = len(scores)
        rows.append(row)
    return rows


def _write(frames: dict[tuple[Plan, str], Any], output: Path, seeds: int) -> None:
    rows: list[dict[str, Any]] = []
    for plan in PLANS:
        tuned, control = (frames.get((plan, part)) for part in ("pretrained", "random"))
        if tuned is not None and control is not None and len(tuned) and len(control):
            rows += _compare(plan, tuned, control)
    note = (
        f"{ROWS} training rows, {EPOCHS} epochs, at most {ROWS} test rows, {seeds} seeds ({MATCH_ROWS:,} rows where it "
        f"says so: {MATCH_EPOCHS} epochs, 400 test rows): mean and standard deviation "
        "of the task's primary measure (accuracy; ROUGE-L for demo_summary). Chance: 0.125 for demo_library, 0.5 for "
        "demo_match, 0.1 for demo_digits. The learning rates were set once and not searched. "
        "Made by `python -m pretrain tuned`."
    )
    output.write_text(json.dumps({"note": note, "rows": rows}, indent=1) + "\n")
