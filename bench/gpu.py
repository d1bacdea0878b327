"""The cases for a GPU: FLAN-T5-XL and LLaMA-7B shapes, LoRA on all linears, bf16, against peft + Trainer at its best.

Weights are random: times and memory do not depend on them. The OPT-125m cohort on a GPU is a case of `cohorts.py`.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import table
import torch
from contest import contestants, ratios

CASES = {
    "flan-t5-xl": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    "llama-7b": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Two rows per shape; empty ones without a GPU."""
    rows = []
    for shape, targets in CASES.items():
        speed = f"GPU: {shape} shape, LoRA r=8 on all linears, bf16: tokens/s against peft + Trainer at its best"
        memory = f"GPU: {shape} shape, the same: peak memory, MiB"
        if not torch.cuda.is_available():
            rows.append(table.row(speed, None, None, None, ">= 1.5x", None, "no GPU here"))
            rows.append(table.row(memory, None, None, None, "<= 0.65x", None, "no GPU here"))
            continue
        shared = {"task": "train", "shape": shape, "device": "cuda", "rows": 128, "batch": 16, "best": True}
        specs = [
            {**shared, "side": "ours", "methods": ["lora(rank=8, where='all_linear')"]},
            {**shared, "side": "peer", "methods": ["lora"], "targets": targets},
        ]
        found = []
        for spec in specs:  # both do not fit side by side on smaller cards, so one after the other
            with tempfile.TemporaryDirectory() as folder, contestants([spec], Path(folder)) as (worker,):
                worker.ask("steps", 8)
                found.append([worker.ask("steps", 8) for _ in range(2 if quick else 4)])
        rates = [[answer["tokens"] / answer["seconds"] for answer in answers] for answers in found]
        ratio = ratios(*rates)
        rows.append(table.row(speed, *map(statistics.median, rates), ratio, ">= 1.5x", ratio[0] >= 1.5))
        peaks = [max(answer["peak_bytes"] for answer in answers) / 2**20 for answers in found]
        share = peaks[0] / peaks[1]
        rows.append(table.row(memory, *peaks, (share,) * 3, "<= 0.65x", share <= 0.65))
    return rows
