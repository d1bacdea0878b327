"""How many training rows a budget pays to be read: each is made tokens of, or its picture decoded, before anything learns of it.

rows of the file ── read within a quarter of the money? ──yes──> all
                                     └──no──> the first ones of the study's random order
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.tasks.base import Example, Task

READING_SHARE = 0.25
"""Of the budget: features of as many rows take several times as long as reading them, and training on them again that."""
ROW_SECONDS, CHARACTERS_PER_SECOND = 3e-4, 1e6
"""Of a text: putting a prompt and its row together, and a fast tokenizer on one core of a server."""
MOST_CHARACTERS = 8192
"""Of a classifier's text that are read at all: 512 tokens, with room (`train.encoding`). A prompt is read whole before its
longest column gives way."""
PICTURE_SECONDS, BYTES_PER_SECOND = 8e-3, 1.5e7
"""Of a picture: scaling it to what a backbone reads, and decoding a JPEG of so many bytes."""
LOOKED_AT = 100
"""Rows whose mean size is taken for that of all; it is known to a tenth of its spread."""


def readable_rows(task: Task, budget_seconds: float, classifies: bool = True) -> int | None:
    """Training rows that can be read within their share of a budget; None where all can.

    By sizes alone and not by a clock: the same file under the same budget has the same rows everywhere.

    Args:
        budget_seconds: infinity without a limit.
        classifies: the backbone's head answers, and not its words.
    """
    rows = task.load()["train"]
    # Evenly over the file, which may be sorted.
    some = rows[:: max(1, len(rows) // LOOKED_AT)]
    if math.isinf(budget_seconds) or not some:
        return None
    each = sum(_seconds(row, MOST_CHARACTERS if classifies else math.inf) for row in some) / len(some)
    readable = max(1, int(READING_SHARE * budget_seconds / each))
    return readable if readable < len(rows) else None


def _seconds(row: Example, most_characters: float) -> float:
    """What reading a row takes, about."""
    if callable(picture := row.fields.get("image")):
        read = getattr(picture, "read_bytes", None)
        return PICTURE_SECONDS + (len(read()) / BYTES_PER_SECOND if read is not None else 0.0)
    texts = [text for _, text in row.turns] or [value for value in row.fields.values() if isinstance(value, str)]
    return ROW_SECONDS + sum(min(len(text), most_characters) for text in texts) / CHARACTERS_PER_SECOND
