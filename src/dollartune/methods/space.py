"""Ranges of hyperparameters, as methods declare them: `search = {"lr": LogUniform(1e-4, 1e-2)}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogUniform:
    """A positive number, uniform in its logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class Uniform:
    """A number between two bounds."""

    low: float
    high: float


@dataclass(frozen=True)
class IntRange:
    """An integer between two bounds, both included; `log` spreads it evenly over powers."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few values."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)


Space = LogUniform | Uniform | IntRange | Choice


def space_in_words(space: Space) -> str:
    """`from 5e-05 to 0.005 (log)`, `one of 2, 4, 8`."""
    if isinstance(space, Choice):
        return f"one of {', '.join(map(str, space.options))}"
    log = isinstance(space, LogUniform) or (isinstance(space, IntRange) and space.log)
    return f"from {space.low:g} to {space.high:g}{' (log)' if log else ''}"
