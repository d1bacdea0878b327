"""What batches of a task look like: numbers of rows and lengths in tokens, from its data or from what is known of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dollartune.planner.dry_run import BatchShape
from dollartune.train.batching import by_length, epoch_order


@dataclass(frozen=True)
class BatchShapes:
    """Batches of one size."""

    mean: BatchShape
    """As long as batches are on average: the work of an epoch is that of so many of it."""
    longest: BatchShape
    """Memory is needed for this one."""


@dataclass(frozen=True)
class TaskShape:
    """A task in numbers, for one backbone."""

    kind: Literal["classification", "generation"]
    train_rows: int
    validation_rows: int
    test_rows: int
    lengths: tuple[tuple[int, int], ...]
    """(prompt, answer) in tokens of some rows, answers with their end mark; classification heads have answers of 0."""
    label_tokens: tuple[int, ...] = ()
    """Tokens of each label word (classification)."""
    max_answer_tokens: int = 1
    limit: int = 512
    """Longest input that is encoded."""
    source: str = "the data"
    """Where the lengths are from, for people."""

    def batches(self, rows: int, group: bool) -> BatchShapes:
        """Shapes of batches of so many rows, shuffled or grouped by length as training and evaluation do it."""
        sample = self.lengths
        if len(sample) < rows:
            sample = sample * math.ceil(rows / len(sample))
        totals = [prompt + answer for prompt, answer in sample]
        order = epoch_order(totals, rows, 0, 0, group)
        # A window of grouping holds several batches; of one or two in all nothing would be grouped, though in the whole data it
        # is.
        order = by_length(totals, rows) if group and len(order) <= 2 else order
        # A rest that is no whole batch is left out: there is one in an epoch, and it would pull the mean down.
        shapes = [_covering([sample[i] for i in batch], rows) for batch in order if len(batch) == rows]
        longest = max(shapes, key=lambda shape: shape.prompt + shape.answer)
        prompt = sum(shape.prompt for shape in shapes) / len(shapes)
        answer = sum(shape.answer for shape in shapes) / len(shapes)
        top = max(prompt for prompt, _ in sample), max(answer for _, answer in sample)
        if sum(top) > longest.prompt + longest.answer:  # some batch of some epoch has the longest row
            longest = BatchShape(rows, *top)
        return BatchShapes(BatchShape(rows, max(1, round(prompt)), round(answer)), longest)

    def with_examples(self, count: int) -> TaskShape:
        """The same with solved examples before each question, as many as fit."""
        solved = sum(prompt + answer for prompt, answer in self.lengths) / len(self.lengths)
        longer = [
            (prompt + int(min(count, max(0, (self.limit - answer - prompt) // max(1.0, solved))) * solved), answer)
            for prompt, answer in self.lengths
        ]
        return replace(self, lengths=tuple(longer))


def _covering(rows: Sequence[tuple[int, int]], count: int) -> BatchShape:
    """The batch that holds rows of these lengths: decoders are padded to the longest sum, the others part by part."""
    return BatchShape(count, max(prompt for prompt, _ in rows), max(answer for _, answer in rows))


def spread_lengths(prompt: int, answer: int, longest: int | None = None) -> tuple[tuple[int, int], ...]:
    """Lengths around a typical one where there is no data: from half of it to twice of it, as texts vary."""
    top = longest or 2 * prompt
    # Skewed as lengths of texts are: the median is 1, the mean 1.05, one row in twelve is twice as long.
    factors = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.4, 1.6, 2.0)
    return tuple((max(1, min(top, round(prompt * f))), answer) for f in factors)
