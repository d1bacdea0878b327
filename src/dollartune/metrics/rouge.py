"""ROUGE: overlap of words (1), pairs of words (2) or the longest common subsequence (L) with a reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from dollartune.metrics.base import MeanMetric, MetricKind, Takes, texts_of

Variant = Literal["1", "2", "L"]
Part = Literal["fmeasure", "precision", "recall"]


class Overlap(NamedTuple):
    """How a text agrees with a reference, each in [0, 1]."""

    precision: float
    """Shared units / units of the text."""
    recall: float
    """Shared units / units of the reference."""

    @property
    def fmeasure(self) -> float:
        """F = 2 P R / (P + R)."""
        return (
            2 * self.precision * self.recall / (self.precision + self.recall) if self.precision + self.recall else 0.0
        )


class Rouge(MeanMetric):
    """ROUGE-1, -2 or -L, as F-measure (the field's default), precision or recall.

    With several references, the one with the best F-measure counts, as in the `rouge-score` package. No stemming; words
    are runs of a-z and 0-9 after lowercasing, so for languages with other letters use chrF.

    Source: Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries, sections 2 and 3 (L on the whole text).
    """

    kind: ClassVar[MetricKind] = "generation"
    takes: ClassVar[Takes] = "texts"

    def __init__(self, variant: Variant, part: Part = "fmeasure") -> None:
        self.variant: Variant = variant
        self.part: Part = part
        self.name = f"rouge{variant}" + ("" if part == "fmeasure" else f"_{part}")

    def one(self, prediction: str | None, reference: str | Sequence[str]) -> float:
        """The chosen part for one text; 0 for a missing text."""
        words = tokens(prediction or "")
        overlaps = [self.overlap(words, tokens(text)) for text in texts_of(reference)]
        # By F-measure whichever part is reported: precision and recall then belong to the same reference.
        best = max(overlaps, key=lambda overlap: overlap.fmeasure)
        return float(getattr(best, self.part))

    def overlap(self, words: Sequence[str], reference: Sequence[str]) -> Overlap:
        """Precision and recall between two lists of words."""
        if self.variant == "L":
            return _overlap(common_subsequence(words, reference), len(words), len(reference))
        order = int(self.variant)
        mine, theirs = _ngrams(words, order), _ngrams(reference, order)
        # `&` of counters is the smaller count: a word that is said three times finds one in the reference once only.
        return _overlap((mine & theirs).total(), mine.total(), theirs.total())


def tokens(text: str) -> list[str]:
    """Lowercased runs of ASCII letters and digits."""
    # As the rouge-score package tokenizes, without its stemmer: published ROUGE-L without stemming is reproduced exactly.
    return re.findall(r"[a-z0-9]+", text.lower())


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(second) steps on integers of len(first) bits.

    Bit i of `row` is 0 where the dynamic program's row grows at position i; one addition carries a whole row.

    Source: Hyyro (2004), Bit-parallel LCS-length computation revisited.
    """
    positions: dict[str, int] = {}
    for number, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << number
    # Python's integers have any length, so against a text of 1,000 words each word of the other costs one addition, not a row
    # of a table.
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(first) - row.bit_count()


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _overlap(shared: int, mine: int, theirs: int) -> Overlap:
    return Overlap(shared / mine if mine else 0.0, shared / theirs if theirs else 0.0)
