"""Which class label a value of the data means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TRUE, FALSE = ("yes", "true"), ("no", "false")


def match_label(value: Any, labels: Iterable[str]) -> str | None:
    """The label that a value stands for: exactly, else without case and outer white space, else by truth value.

    The last step is there because YAML reads a bare `yes` or `no` as true or false, csv files write `True` where
    JSON has true, and a data set's booleans are labels called yes and no.

    Args:
        value: what the data holds: a text, a number or a truth value.
        labels: the known labels.

    Returns:
        One of `labels`, or None.
    """
    known = list(labels)
    text = str(value)
    if text in known:
        return text
    folded = {label.casefold(): label for label in reversed(known)}
    plain = text.strip().casefold()
    if plain in folded:
        return folded[plain]
    for words in (TRUE, FALSE):
        if plain in words:
            return next((folded[word] for word in words if word in folded), None)
    return None


def label_text(value: Any) -> str:
    """How a value of a label column is written as a label: truth values as yes and no, whole numbers without `.0`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
