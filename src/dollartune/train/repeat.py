"""What a recorded training did, in steps: enough to do it again without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.train.length import Replan


@dataclass(frozen=True)
class Repeat:
    """A recorded training. Validation changes no weights, so a repetition does without: which state was best is recorded too."""

    plan: Sequence[Replan]
    """Steps that training was to have; empty for records of versions that wrote none, whose settings say it."""
    steps: int
    """Optimizer steps that were made."""
    best_step: int
    """The step whose state was kept."""
    stopped: str
    """Why it ended before its last planned step; empty where it did not."""
    average: str = ""
    """`decay` where the average of the decay's states was kept."""
    rows_share: float | None = None
    """Share of the training rows that it was solved on; None where it is not solved, or its settings say it."""
