"""Evaluation of a classification task by label scoring against `generate`: 4-shot prompts of BoolQ's lengths."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import table
from contest import contestants, in_turns, ratios

NEW_TOKENS = 3


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Seconds for 32 prompts, OPT-125m's shape, both in bf16."""
    prompts = 8 if quick else 32
    shared = {"task": "score", "prompts": prompts, "new_tokens": NEW_TOKENS}
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants([{**shared, "side": "ours"}, {**shared, "side": "peer"}], Path(folder)) as workers,
    ):
        found = in_turns(workers, 2 if quick else 3, "score", None)
    seconds = [[answer["seconds"] for answer in answers] for answers in found]
    ratio = ratios(seconds[1], seconds[0])
    case = (
        f"BoolQ by label scoring, 4-shot, {prompts} rows: seconds against transformers generate ({NEW_TOKENS} tokens)"
    )
    return [table.row(case, *(statistics.median(own) for own in seconds), ratio, ">= 5x", ratio[0] >= 5)]
