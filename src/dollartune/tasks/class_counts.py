"""What the classes of a split allow to be measured, said before anything is paid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dollartune import format as numbers

if TYPE_CHECKING:
    from dollartune.tasks.base import Example, SplitName

LISTED = 8
"""Classes whose rows are listed one by one; of more, the least and the largest are told."""
FEW = 5
"""Training rows of a class below which hardly anything can be learned of it, and its score is luck."""


def class_notes(labels: Sequence[str], splits: Mapping[SplitName, Sequence[Example]]) -> list[str]:
    """Rows of each class in each split, what the majority class scores, and classes that a split lacks or hardly has.

    Args:
        labels: the task's labels; none for generation.
        splits: the examples of the three splits.
    """
    if not labels:
        return []
    counts = {split: Counter(example.label for example in rows) for split, rows in splits.items()}
    total = {split: sum(of_split.values()) for split, of_split in counts.items()}
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    if len(labels) <= LISTED:
        # A label may have line breaks.
        named = {label: " ".join(label.split()) for label in labels}
        listed = "; ".join(
            f"{named[label]} {' / '.join(str(counts[split][label]) for split in order)}" for label in labels
        )
        notes = [f"rows of each class in train / validation / test: {listed}"]
    else:
        ranges = ", ".join(
            f"{min(counts[split][label] for label in labels)} to {max(counts[split][label] for label in labels)} {split}"
            for split in order
        )
        notes = [f"{len(labels)} classes; rows of each: {ranges}"]
    majority = max(labels, key=lambda label: counts["train"][label])
    share = counts["test"][majority] / max(1, total["test"])
    notes[0] += f"; always saying {majority!r} scores {numbers.score(share)} on the test rows"
    for split in order:
        lacking = [label for label in labels if not counts[split][label]]
        if lacking:
            what = {
                "train": "cannot be learned",
                "validation": "settings are chosen without",
                "test": "no score says anything about",
            }[split]
            names = _names(lacking)
            sentence = f"{names} {what}" if split == "train" else f"{what} {names}"
            notes.append(f"the {split} rows have none of {len(lacking)} of {len(labels)} classes: {sentence}")
    few = [label for label in labels if 0 < counts["train"][label] < FEW]
    if few:
        notes.append(
            f"{len(few)} of {len(labels)} classes have fewer than {FEW} training rows ({_names(few)}): too few rows; add some, "
            "or join classes"
        )
    return notes


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"
