"""How long the rows of ready-made tasks are, for planning where the data is not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("typical.yaml")

CHARACTERS_PER_TOKEN = 4.2
"""Of English text in the subword vocabularies in use; other languages and small vocabularies have fewer."""


@dataclass(frozen=True)
class Typical:
    """Lengths and rows of a public data set."""

    rows: tuple[int, int, int]
    """Train, validation, test."""
    prompt_characters: tuple[int, ...]
    """Of prompts, in twelve steps from short to long; empty for images."""
    answer_characters: tuple[int, ...]
    """Of the answers of such rows."""


@cache
def _table() -> dict[str, dict[str, Any]]:
    import yaml

    table: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())
    return table


def typical(name: str) -> Typical | None:
    """What is known of a task by its name; None if nothing is."""
    lengths = _table().get(name)
    if lengths is None:
        return None
    return Typical(tuple(lengths["rows"]), tuple(lengths.get("prompt", ())), tuple(lengths.get("answer", ())))
