"""What was predicted: free text read as a label, and the counts of each label and of "other" (reference 000)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

OTHER = "other"
"""Key for predictions that name no label."""


def label_from_text(text: str, label_words: Mapping[str, str]) -> str | None:
    """Reads a generated text as a label: the label whose word stands at its start, as whole words, else None.

    Case, punctuation and white space do not count: " Yes, it is" reads as yes; "yesterday" does not. Of two words that
    both fit ("good", "good enough") the longer one wins.

    Args:
        text: what the model wrote after the prompt.
        label_words: label -> word.
    """
    said = normal(text).split()
    named, longest = None, 0
    for label, word in label_words.items():
        wanted = normal(word).split()
        begins = said[: len(wanted)] == wanted if wanted else text.split()[:1] == [word.strip()]  # a word such as "+"
        if begins and max(len(wanted), 1) > longest:
            named, longest = label, max(len(wanted), 1)
    return named


def breakdown(predictions: Sequence[str | None], labels: Sequence[str]) -> dict[str, int]:
    """Counts of each label, in label order, then of "other": None and whatever is no label.

    Where a label is itself called "other", the rest is under "(no label)".

    Args:
        predictions: labels, None for none.
        labels: the known labels.
    """
    counts = Counter(prediction for prediction in predictions if prediction in set(labels))
    counted = {label: counts[label] for label in labels}
    rest = "(no label)" if OTHER in counted else OTHER
    return {**counted, rest: len(predictions) - sum(counted.values())}


def normal(text: str) -> str:
    """A text without case, punctuation and extra white space; `sci/tech` becomes `sci tech`."""
    return " ".join("".join(character if character.isalnum() else " " for character in text.casefold()).split())
