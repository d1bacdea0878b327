"""The contract of baselines: methods that answer without a backbone, what they are fitted on and what they answer.

texts, labels  ──> Method.fit ──> Answerer ──> log p (rows, classes)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledTexts:
    """Training rows as a baseline sees them."""

    texts: Sequence[str]
    """The columns that the prompt names, of each row; empty texts where rows are pictures."""
    labels: NDArray[np.int64]
    """(rows,), class of each row."""
    classes: int
    """Number of classes, those without a row included."""
    seed: int = 0
    """Of the trial: whatever is drawn (folds) is drawn with it."""


class Answerer(Protocol):
    """What was fitted."""

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        ...

    @property
    def reported(self) -> Mapping[str, float]:
        """What the record should say of it besides the size."""
        ...

    def log_probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(rows, classes): log p(class | text); -inf for a class that no training row had."""
        ...


@dataclass(frozen=True)
class ClassShares:
    """Answers every row with the shares of the classes among the training rows."""

    shares: NDArray[np.float64]
    """(classes,), summing to 1."""
    reported: Mapping[str, float]

    @classmethod
    def of(cls, rows: LabelledTexts) -> ClassShares:
        counts = np.bincount(rows.labels, minlength=rows.classes)
        return cls(counts / counts.sum(), {"majority_share": float(counts.max() / counts.sum())})

    @property
    def parameters(self) -> int:
        return len(self.shares)

    def log_probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):  # log 0 = -inf: a class that never came up
            answer: NDArray[np.float64] = np.tile(np.log(self.shares), (len(texts), 1))
        return answer
