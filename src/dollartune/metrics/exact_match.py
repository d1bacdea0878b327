"""Share of texts that equal a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dollartune.metrics.base import MeanMetric, MetricKind, Takes, texts_of
from dollartune.metrics.breakdown import normal


class ExactMatch(MeanMetric):
    """1 where the text equals one of the references, case, punctuation and white space aside."""

    name = "exact_match"
    kind: ClassVar[MetricKind] = "generation"
    takes: ClassVar[Takes] = "texts"

    def one(self, prediction: str | None, reference: str | Sequence[str]) -> float:
        """1 or 0; a missing text never matches."""
        return float(prediction is not None and any(normal(prediction) == normal(text) for text in texts_of(reference)))
