"""AG News with MiniLM: the time to peft's accuracy, from the model's file to test predictions, libraries imported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import shapes
import table
from contest import contestants

LR = 1e-3
STANDARD_ERROR = 0.0099
"""Of an accuracy of 0.89 on 1,000 rows."""


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """LoRA r=8 on q, v; 1,000 examples, five epochs at most; 1,000 test rows."""
    case = "AG News, MiniLM, LoRA r=8, 1,000 examples x 5 epochs: seconds to peft + Trainer's accuracy"
    if not (shapes.DATA / "ag_news").is_dir():
        return [table.row(case, None, None, None, "<= 0.2x", None, f"no data in {shapes.DATA.name}/ag_news")]
    rows, test, epochs = (100, 200, 1) if quick else (1000, 1000, 5)
    shared = {"task": "ag_news", "rows": rows, "test": test, "epochs": epochs, "lr": LR}
    specs = [{**shared, "side": "ours", "batch": 16}, {**shared, "side": "peer", "batch": 8}]
    with tempfile.TemporaryDirectory() as folder, contestants(specs, Path(folder)) as workers:
        ours, peer = (worker.ask("run") for worker in workers)
    ratio = ours["seconds"] / peer["seconds"]
    accurate = ours["accuracy"] >= peer["accuracy"] - STANDARD_ERROR / 2
    note = (
        f"accuracy {ours['accuracy']:.3f} after {ours['epochs']:g} epochs against {peer['accuracy']:.3f}; "
        "batches of 16 against the Trainer's default of 8; "
        f"training alone {ours['trained']:.1f} s against {peer['trained']:.1f} s"
    )
    return [table.row(case, ours["seconds"], peer["seconds"], (ratio,) * 3, "<= 0.2x", ratio <= 0.2 and accurate, note)]
