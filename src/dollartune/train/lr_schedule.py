"""The schedule of the learning rate.

factor 1 │   ╱╲             linear warm-up, then in a straight line to 0 after the last step
         │  ╱   ╲           (or along a cosine, or staying at 1)
         │ ╱      ╲
       0 └─────────────> step
"""

from __future__ import annotations

import math

from dollartune.train.settings import TrainingSettings


def learning_rate_factor(step: int, total: int, settings: TrainingSettings) -> float:
    """Factor of the peak learning rate, from 0 to 1.

    Args:
        step: optimizer steps that are done.
        total: of the whole training.
    """
    warmup = int(total * settings.warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)  # not from 0: a first step at rate 0 would be a batch for nothing
    if settings.schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - warmup)  # 1 after the warm-up; the last step still moves by 1 / total
    return left if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
