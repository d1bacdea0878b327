"""How long the rows of ready-made tasks are, for planning where the data is not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NotRequired, TypedDict

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


class _Lengths(TypedDict):
    """An entry of the file; see `Typical`."""

    rows: tuple[int, int, int]
    prompt: NotRequired[list[int]]
    answer: NotRequired[list[int]]


@cache
def _table() -> dict[str, _Lengths]:
    import yaml

    table: dict[str, _Lengths] = yaml.safe_load(FILE.read_text(encoding="utf8"))
    return table


def typical(name: str) -> Typical | None:
    """What is known of a task by its name; None if nothing is."""
    lengths = _table().get(name)
    if lengths is None:
        return None
    train, validation, test = lengths["rows"]
    return Typical((train, validation, test), tuple(lengths.get("prompt", ())), tuple(lengths.get("answer", ())))
