"""Which rows an adapter was tuned on, by content: a score on them is no test, whatever file they come back in."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.tasks.images import content_key
from dollartune.tasks.splitting import input_key
from dollartune.tasks.values import as_text

if TYPE_CHECKING:
    from dollartune.tasks.base import Example, Task

HASH_BYTES = 6
"""Of a row's hash: with 100,000 rows on each side, one in 30,000 files has a row that is taken for another."""


@dataclass(frozen=True)
class RowsSeen:
    """Hashes of the rows that an adapter was trained on, and of those that chose its settings and its best state."""

    trained: frozenset[bytes] = frozenset()
    chosen_by: frozenset[bytes] = frozenset()

    def as_data(self) -> dict[str, str]:
        """For adapter.json: hashes in base64, one after the other, since a number for each would be four times as long."""
        return {"trained": _packed(self.trained), "chosen_by": _packed(self.chosen_by)}

    @classmethod
    def read(cls, stored: Any) -> RowsSeen | None:
        """What adapter.json holds; None where it holds nothing readable (adapters of earlier versions, of other programs)."""
        if not isinstance(stored, Mapping):
            return None
        return cls(_unpacked(stored.get("trained")), _unpacked(stored.get("chosen_by")))


MOST_ROWS = 250_000
"""Rows whose hashes an adapter keeps: 2 MB. Of larger sets it says nothing, and `evaluate` says so."""


def rows_seen(task: Task, trained: Sequence[Example], chosen_by: Sequence[Example]) -> RowsSeen | None:
    """The hashes of the examples that a trial used; examples without content of their own (made by code) have none."""
    if len(trained) + len(chosen_by) > MOST_ROWS:
        return None

    def hashes(examples: Iterable[Example]) -> frozenset[bytes]:
        return frozenset(hashed for example in examples if (hashed := row_hash(task, example)) is not None)

    return RowsSeen(hashes(trained), hashes(chosen_by))


def row_hash(task: Task, example: Example) -> bytes | None:
    """Of what a model is shown of a row: its texts without regard to case and white space, or its picture's file."""
    owner = task.owner(example)
    if example.turns:
        key = input_key(f"{role}\x1e{text}" for role, text in example.turns[:-1])
    elif owner.modality == "image":
        content = content_key(example.fields.get("image"))
        if content is None:
            return None
        key = content
    else:
        columns = owner.template.columns if owner.template else ()
        key = input_key(as_text(example.fields.get(name)) for name in columns)
    return bytes.fromhex(key)[:HASH_BYTES]


def _packed(hashes: frozenset[bytes]) -> str:
    # sorted: sets have no order, and the same rows must give the same file
    return base64.b64encode(b"".join(sorted(hashes))).decode()


def _unpacked(text: Any) -> frozenset[bytes]:
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return frozenset()
    return frozenset(content[at : at + HASH_BYTES] for at in range(0, len(content), HASH_BYTES))
