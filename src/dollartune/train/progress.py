"""How far a trial's training has come: what a checkpoint stores beside tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dollartune.train.length import Replan

_NAMES_OF_01 = {
    "trunk_layers": "frozen_prefix_layers",
    "trunk_tokens": "frozen_prefix_tokens",
    "trunk_tokens_computed": "frozen_prefix_tokens_computed",
}
"""Fields of checkpoints that 0.1 wrote, which go on."""


@dataclass(frozen=True)
class Validation:
    """One measurement during training."""

    epoch: float
    step: int
    seconds: float
    """Tuning seconds since the trial began, validation included; shared passes are divided among their trials."""
    train_loss: float
    validation_loss: float
    rows: int = 0
    """Validation rows that it is the mean of; 0 in what earlier versions wrote: all."""


@dataclass
class Progress:
    """What a checkpoint stores beside tensors."""

    step: int = 0
    """Optimizer steps that are done."""
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: float = 0.0
    best_step: int = 0
    best_seconds: float = 0.0
    without_gain: int = 0
    """Validations since the best one."""
    best_blocks: list[tuple[float, int]] = field(default_factory=list)
    """(summed loss, targets) of the best state in each block of validation rows that it was measured on."""
    plan: list[Replan] = field(default_factory=list)
    """Steps that training was to have, the first plan and each later one."""
    averaged: int = 0
    """States of the decay that are in the running average."""
    average: str = ""
    """`decay` where the average of the decay's states was better than the best single state, and is what the trial ends with."""
    ending: str = ""
    """Why its decay began before it was planned: `patience` where a training from money got no better any more, `budget` where
    the money ends before a training whose length is set."""
    solution_seconds: float = 0.0
    """What solving took, without the features."""
    rows_share: float | None = None
    """Share of the training rows that it was solved on; None where it is not solved."""
    seconds_per_row: float = 0.0
    """Of passing a row forwards, as last seen while its time was limited; 0 where it was not."""
    on_validation: bool = False
    """Whether it was solved on the validation rows too, once its score on them was known."""
    settled: bool = False
    """Whether its methods' schedules have come to what they promise, so that a validation may be the best."""
    zero_gradients: int = 0
    """Steps in a row whose gradient was exactly 0; see `diverged`."""
    examples: int = 0
    tokens: int = 0
    frozen_prefix_layers: dict[str, int] = field(default_factory=dict)
    """Stack -> leading layers below the lowest trained one whose outputs were computed once; empty where none were."""
    frozen_prefix_tokens: int = 0
    """Of `tokens`, those that began above these layers."""
    frozen_prefix_tokens_computed: int = 0
    """This trial's share of the tokens for which these layers were run."""
    compile_seconds: float = 0.0
    """Of `seconds`, this trial's share of what compiling layers took."""
    stopped: str = ""
    """Why it ended before its last step: `patience`, `budget`, `pruned`, `failed`; empty while running or at the last step."""
    error: str = ""
    """What broke, where it failed."""
    begun_with: str = ""
    """Folder of the tuned adapter whose tensors it began with; empty where it began fresh."""
    history: list[Validation] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """From a checkpoint of this version or of 0.1."""
        named = {_NAMES_OF_01.get(name, name): value for name, value in data.items()}
        named["history"] = [Validation(**row) for row in data["history"]]
        # 0.1 wrote neither of these two
        named["plan"] = [Replan(**one) for one in data.get("plan", [])]
        named["best_blocks"] = [(loss, targets) for loss, targets in data.get("best_blocks", [])]
        return cls(**named)
