"""Every method as a LoRA: what the conversion costs; and two tasks' LoRAs as one: what merging costs.

    python bench/lora_exports.py [--backbone tiny-decoder] [--tasks demo_library demo_match] [--rows 160] [--epochs 4] [--rank 64]
    python bench/lora_exports.py --backbone smollm2-135m --tasks sst2 ag_news --data-root ../shared/data --methods lora dora ia3

Each method that merges into the weights is tuned on the first task and exported by `--format lora`. What is written is loaded by
the peft library, whose logits are compared, and scored on test rows beside the adapter; of the others the reason is printed. Then
a LoRA of each of the first two tasks is merged in three ways, and each result scored on both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.export.arithmetic import merge_adapters
from dollartune.export.handover import export_adapter
from dollartune.methods.lora import LoRA
from dollartune.methods.registry import methods
from dollartune.study.api import Study
from dollartune.tasks.base import Example
from dollartune.tasks.registry import load_task


def merging_methods() -> list[str]:
    """Methods whose adapters can be added into the weights, a new head apart: language models keep theirs."""
    return [name for name, kind in methods().items() if kind.capabilities.mergeable and set(kind.kinds) != {"head"}]


def tuned(given: argparse.Namespace, tasks: list[str], wanted: list[str], folder: Path) -> dict[tuple[str, str], Path]:
    """(task, method) -> adapter."""
    study = Study(
        {
            "name": "exports", "backbone": given.backbone, "tasks": tasks, "methods": wanted, "scales": [given.rows], "seeds": 1,
            "baselines": False, "search": False, "keep_adapters": "all", "output": str(folder),
            "training": {"epochs": given.epochs, "max_length": 128, "validation_rows": 16},
            "evaluation": {"rows": given.test_rows, "free_generation": False, "forgetting": False, "inference_cost": False},
        },
        data_root=None if given.data_root is None else str(given.data_root),
    )  # fmt: skip
    study.run(display=Display())
    found = {}
    for record in study.results().done():
        found[record.trial.task, record.trial.methods[0]["method"]] = study.store.folder(record.id) / "adapter"
    return found


def write_rows(rows: Iterable[Example], path: Path) -> Path:
    path.write_text("".join(json.dumps({**row.fields, "label": row.label}) + "\n" for row in rows), encoding="utf8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-decoder")
    parser.add_argument("--tasks", nargs="+", default=["demo_library", "demo_match"])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--test-rows", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    given = parser.parse_args()
    torch.manual_seed(0)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = {}
        for task in given.tasks[:2]:
            loaded = load_task(task, given.data_root)
            files[loaded.name] = write_rows(loaded.splits(0, 0, given.test_rows).test, root / f"{loaded.name}.jsonl")
        adapters = tuned(given, given.tasks[:1], given.methods or merging_methods(), root / "first")
        for (task, method), folder in adapters.items():
            try:
                lines = export_adapter(
                    folder, root / "as-lora" / method, "lora", rank=given.rank, examples=files[task]
                ).lines
            except UserError as error:
                print(f"{method}: none. {error.message.splitlines()[0]}", flush=True)
                continue
            wrong += not any("by the peft library" in line for line in lines)
            print(f"{method}:", *lines, sep="\n    ", flush=True)
        if len(given.tasks) > 1:
            both = {**adapters, **tuned(given, given.tasks[1:2], [LoRA.name], root / "second")}
            pair = [both[task, LoRA.name] for task in files]
            for how in ("linear", "ties", "dare"):
                out = root / how
                said: Any = merge_adapters(
                    pair, out, [0.5, 0.5] if how == "linear" else [1.0, 1.0], how, rows=list(files.values())
                )
                print(*said, sep="\n    ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
