"""Early stopping: which validation was the best, and when patience ends.

validation loss   3.0   2.0   2.5   2.2   2.1        patience 3: three validations without a better loss
                   └best─┘     1     2     3 ─> stop; the tensors of the second one come back
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.train.progress import Progress


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
    progress.best_loss, progress.best_epoch, progress.best_step = loss, epoch, progress.step
    progress.best_blocks = list(blocks)
    progress.best_seconds, progress.without_gain = progress.seconds, 0
    return True


def patience_ended(progress: Progress, patience: int | None) -> bool:
    """Whether so many validations brought nothing. Never before the methods' schedules have settled: they make the loss rise
    on the way, and a trial that ends there keeps nothing of what it promised."""
    return progress.settled and patience is not None and progress.without_gain >= patience


def _mean(blocks: Sequence[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in blocks) / max(1, sum(targets for _, targets in blocks))
