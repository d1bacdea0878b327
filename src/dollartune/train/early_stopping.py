"""Early stopping: which validation was the best, and when patience ends.

validation loss   3.0   2.0   2.5   2.2   2.1        patience 3: three validations without a better loss
                   └best─┘     1     2     3 ─> stop; the tensors of the second one come back
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.train.progress import Progress

LEAST_PAIRS = 20
"""Blocks of validation rows below which a standard error of their differences says too little, and the lower loss wins."""


def settle(progress: Progress) -> None:
    """Forgets what was best so far: only now do the methods keep what they promise (AdaLoRA its ranks, DiffPruning its
    sparsity), so that nothing from before may win."""
    progress.settled, progress.best_loss, progress.best_blocks, progress.without_gain = True, math.inf, [], 0


def is_best(progress: Progress, loss: float, epoch: float, blocks: Sequence[tuple[float, int]] = ()) -> bool:
    """Books a validation loss; true where its tensors are to be kept.

    Args:
        blocks: (summed loss, targets) of each block of rows. Looks may differ in how many they read; two of them are compared on
            the blocks of both, since other rows would be better or worse for reasons of their own.
    """
    best = progress.best_loss
    # Blocks are read in the same order at every look, so the first ones of both are the same rows.
    common = min(len(blocks), len(progress.best_blocks))
    mine = _mean(blocks[:common]) if common else loss
    if common:
        best = _mean(progress.best_blocks[:common])
    if not mine < best:  # a NaN is never better
        progress.without_gain += 1
        return False
    book_best(progress, loss, epoch, blocks)
    return True


def book_best(progress: Progress, loss: float, epoch: float, blocks: Sequence[tuple[float, int]]) -> None:
    """The state as it is now is the best so far."""
    progress.best_loss, progress.best_epoch, progress.best_step = loss, epoch, progress.step
    progress.best_blocks = list(blocks)
    progress.best_seconds, progress.without_gain = progress.seconds, 0


def end_wins(progress: Progress, blocks: Sequence[tuple[float, int]]) -> bool:
    """Whether what a training ends with, decayed and averaged, is kept in place of the best state on the way: unless that one's
    loss is lower by more than luck explains.

    A decayed average is better than what came before it unless training went too far, so the doubt is its own. Where the loss
    can hardly fall (a hard task, few rows) the lowest one on some hundred rows is luck: on CoLA it kept states of the first
    fifty steps that answered one class alone, where those at the end had learnt what there was to learn.

    Args:
        blocks: of the end, on the rows of the best state's.
    """
    # not strict: the best state may have been read on fewer blocks
    pairs = list(zip(blocks, progress.best_blocks, strict=False))
    if len(pairs) < LEAST_PAIRS:
        return _mean(blocks) < _mean(progress.best_blocks)
    worse = [end - best for (end, _), (best, _) in pairs]
    error = stdev(worse) * math.sqrt(len(worse))
    return sum(worse) <= error


def patience_ended(progress: Progress, patience: int | None) -> bool:
    """Whether so many validations brought nothing. Never before the methods' schedules have settled: they make the loss rise
    on the way, and a trial that ends there keeps nothing of what it promised."""
    return progress.settled and patience is not None and progress.without_gain >= patience


def _mean(blocks: Sequence[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in blocks) / max(1, sum(targets for _, targets in blocks))
