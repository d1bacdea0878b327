"""Which backbone to tune where nobody named one: the largest at hand that the money reads and trains once.

kind of task -> kinds of backbone      classification: encoders first; texts to write: decoders; pictures: vision
parameters, rows, measured FLOP/s -> seconds per pass -> the largest whose epoch takes at most half the budget
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.backbones.catalog import NAMED
from dollartune.backbones.embedded import embedded_names, embedded_path
from dollartune.backbones.outline import outline_of
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.tasks.base import Task

SUITED = {
    "image": ("vision",),
    "classification": ("encoder", "decoder"),
    "generation": ("decoder", "encoder_decoder"),
}
"""Task -> kinds of backbone, the better suited first: encoders read a whole row at once, and their features separate classes
without any tuning (MiniLM's with logistic regression: 0.873 on AG News, for which a decoder of 135 M must be tuned)."""
TOKENS = 64
"""Per row where rows have not been looked at: the median of the presets' prompts is 30 to 130."""
TRAINING_PASSES = 3
"""A training step costs about three forward passes: one forward, and a backward pass of two."""
EPOCH_SHARE = 0.5
"""Of the budget, one epoch may take so much; with less a second epoch, a second setting and the evaluation do not fit."""
ACHIEVED = 0.4
"""Of the speed of one large matrix product, a whole pass reaches about so much on a processor (docs/speed.md: 53 % of the
ceiling in training, less with short rows)."""


@dataclass(frozen=True)
class AtHand:
    """A backbone that is on this machine."""

    name: str
    parameters: int
    where: str

    def seconds_per_1000_rows(self, tokens: int = TOKENS) -> float:
        """Of one pass over 1,000 rows here, estimated from its size and the measured speed of a matrix product. Twice the
        parameters are the FLOP of a token."""
        return 1000 * tokens * 2 * self.parameters / (ACHIEVED * matrix_flops())


@dataclass(frozen=True)
class BackboneChoice:
    """What was chosen, and why."""

    name: str
    why: str


def at_hand() -> list[AtHand]:
    """The backbones on this machine that have a name, the largest first."""
    backbones = [
        AtHand(name, stored_parameters(embedded_path(name) / "model.safetensors"), "embedded")
        for name in embedded_names()
    ]
    backbones += [AtHand(one.name, one.parameters, one.where) for one in NAMED if one.where != "not here"]
    return sorted(backbones, key=lambda one: -one.parameters)


def choose_backbone(task: Task, budget_seconds: float, there: Sequence[AtHand] | None = None) -> BackboneChoice:
    """The backbone for a task and a budget.

    Args:
        budget_seconds: infinity without a limit.
        there: those to choose among; by default all at hand.

    Raises:
        UserError: none at hand can read the task.
    """
    suited = SUITED["image" if task.modality == "image" else task.kind]
    rows = len(task.load()["train"])
    candidates = at_hand() if there is None else list(there)
    for kind in suited:
        fitting = [one for one in candidates if outline_of(one.name).kind == kind]
        if not fitting:
            continue
        tokens = typical_tokens(task)
        epochs = {one.name: TRAINING_PASSES * one.seconds_per_1000_rows(tokens) * rows / 1000 for one in fitting}
        affordable = [one for one in fitting if epochs[one.name] <= EPOCH_SHARE * budget_seconds]
        # The largest first; where none is affordable the smallest comes nearest to it.
        chosen = affordable[0] if affordable else fitting[-1]
        return BackboneChoice(chosen.name, _why(chosen, kind, rows, epochs[chosen.name], budget_seconds, fitting))
    raise UserError(
        f"no backbone on this machine can read task {task.name!r}: it needs one of {', '.join(suited)}.",
        hint="dollartune backbones ls",
    )


def _why(chosen: AtHand, kind: str, rows: int, epoch: float, budget: float, fitting: Sequence[AtHand]) -> str:
    """In one sentence."""
    larger = [one.name for one in fitting if one.parameters > chosen.parameters]
    size = f"{numbers.short_count(chosen.parameters)} parameters"
    money = "" if math.isinf(budget) else f" of the {numbers.clock(budget)}"
    reason = (
        f"the largest {kind} here" if not larger else f"{numbers.listed(larger)} would take more than half the budget"
    )
    return f"{chosen.name} ({size}): {reason}; an epoch over {rows:,} rows takes about {numbers.clock(epoch)}{money}"


def typical_tokens(task: Task) -> int:
    """Tokens of a middling row: a token is about four characters of English; pictures have 64 patches here."""
    if task.modality == "image":
        return TOKENS
    # The middle of 200 lengths is known to a tenth of their spread: more rows would say no more.
    rows = list(task.load()["train"])[:200]
    lengths = sorted(sum(len(str(value)) for value in row.fields.values() if isinstance(value, str)) for row in rows)
    # Eight: the marks of beginning and end and the words of a prompt are there even where a row says one word.
    return max(8, lengths[len(lengths) // 2] // 4) if lengths else TOKENS


@cache
def matrix_flops() -> float:
    """FLOP/s of a large matrix product here, in fp32 or in a GPU's bf16, by the best of some; takes about a tenth of a second."""
    import torch

    # 1 MB each: they stay in a cache, so that arithmetic is timed and not memory.
    side, products, device, dtype = 512, 1, "cpu", torch.float32
    if torch.cuda.is_available():
        # A GPU does a product of 512 in less time than starting it takes. One without bf16 is ten times as slow or more.
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
        side, products, device, dtype = 8192 if quick else 2048, 4, "cuda", torch.bfloat16 if quick else torch.float32
    one, other = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):  # the first ones warm up; the best is the least disturbed by other programs
        began = time.perf_counter()
        for _ in range(products):
            product = one @ other
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return products * 2 * side**3 / best


def stored_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
