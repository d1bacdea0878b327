"""What races: arms, the jobs they are given, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dollartune.methods.space import Space


@dataclass(frozen=True)
class Arm:
    """A method with one setting of its hyperparameters."""

    method: str
    setting: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    """Tells the settings of a method apart; 0 is its default."""

    @property
    def name(self) -> str:
        return f"{self.method}#{self.number}"

    def __hash__(self) -> int:
        return hash((self.method, self.number))


@dataclass(frozen=True)
class Run:
    """Train an arm up to a fraction of its full training and evaluate it."""

    arm: Arm
    fraction: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        return self.arm.name, self.fraction, self.seed


@dataclass(frozen=True)
class Outcome:
    """What a job gave. `score` is None when it failed."""

    score: float | None
    seconds: float
    standard_error: float = 0.0
    """Of the score over the validation examples."""


@dataclass(frozen=True)
class Rank:
    """An arm's place in the result."""

    arm: Arm
    score: float
    """Mean over seeds at the highest fraction it reached."""
    seeds: int
    fraction: float


def draw_arms(
    spaces: Mapping[str, Mapping[str, Space]],
    per_method: int = 4,
    seed: int = 0,
    first: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Arm, ...]:
    """Arms for a race: each method's default, then settings that cover its space evenly.

    Args:
        spaces: search space by method; a method with an empty one gets a single arm.
        first: default settings by method.
    """
    from dollartune.schedule.optuna_search import OptunaSearch

    arms: list[Arm] = []
    for method, space in spaces.items():
        search = OptunaSearch(space, seed, "quasi", first=(first or {}).get(method, {}))
        seen: list[Mapping[str, Any]] = []
        for _ in range(4 * per_method if space else 1):
            proposal = search.ask()
            search.tell(proposal.number, 0.0)
            if proposal.values not in seen and len(seen) < per_method:
                seen.append(proposal.values)
        arms.extend(Arm(method, setting, number) for number, setting in enumerate(seen))
    return tuple(arms)
