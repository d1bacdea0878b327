"""How machines of a Ray cluster talk to the driver of a study.

    machine  --- Message --->  mailroom  --- collect --->  driver
             <-- answer ----   (actor)   <-- answer ----

The driver of a Ray program cannot be called, so an actor on its machine keeps the mail: messages until the driver has
collected them, answers until the machine has them. What the driver has not confirmed it is given again, so that nothing
is lost when it is interrupted while collecting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dollartune.engines.base import TimeLimit
from dollartune.engines.remote_account import Spent
from dollartune.train.trial import Progress
from dollartune.trials.record import TrialRecord


@dataclass(frozen=True)
class Message:
    """Something that happened on a machine in one attempt at a piece of work."""

    attempt: str
    spent: Spent
    """Everything that the attempt has spent until then."""


@dataclass(frozen=True)
class Began(Message):
    """Work begins. Answered with `Terms`."""

    node: str
    """Ray's name of the machine."""
    process: int
    """Its process there."""


@dataclass(frozen=True)
class Terms:
    """What a machine must know before it begins."""

    price_per_hour: float
    """Of the part of the machine that the work occupies."""
    spent_before: Mapping[str, tuple[float, float]]
    """Trial -> seconds and dollars that earlier attempts have booked for it."""


@dataclass(frozen=True)
class Asks(Message):
    """Backbone and data are loaded: what may these trials spend? Answered with a `TimeLimit`, or with a text that refuses."""

    trials: tuple[str, ...]
    seconds_per_row: float | None
    seconds_per_validation_row: float


@dataclass(frozen=True)
class Doubts(Message):
    """A trial of a search has a validation loss. Answered with whether it should end now."""

    trial: str
    step: int
    loss: float


@dataclass(frozen=True)
class Seen:
    """How far a trial is: what a progress view and a tracker need of its `TrialState`."""

    name: str
    done: bool
    epoch: float
    total_steps: int
    progress: Progress


@dataclass(frozen=True)
class Works(Message):
    """Nothing special: a machine says now and then what it has spent and how far it is."""

    states: tuple[Seen, ...] = ()
    evaluating: str | None = None
    """The trial that is being evaluated."""


@dataclass(frozen=True)
class Saved(Message):
    """A checkpoint, or the news that it is not needed any more (no files)."""

    cohort: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Left(Message):
    """The record of a trial."""

    trial: str
    record: TrialRecord
    predictions: tuple[Any, ...]
    adapter: Mapping[str, bytes]
    """Files of its adapter, if it is kept."""


class Mailroom:
    """The actor. Its methods run in one event loop, so that none disturbs another."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Message]] = deque()
        self._number = 0
        self._arrived = asyncio.Event()
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._limits: dict[str, float] = {}

    async def bring(self, message: Message) -> float | None:
        """Takes a message; returns how much the attempt may spend in all, where that has been cut since its time_limit."""
        self._number += 1
        self._kept.append((self._number, message))
        self._arrived.set()
        return self._limits.get(message.attempt)

    async def ask(self, message: Message) -> Any:
        """Takes a message and waits for the driver's answer."""
        self._limits.pop(message.attempt, None)  # a new time_limit begins
        answer = self._answers[message.attempt] = asyncio.get_running_loop().create_future()
        await self.bring(message)
        return await answer

    async def collect(self, confirmed: int, seconds: float) -> list[tuple[int, Message]]:
        """Numbered messages, oldest first; waits up to some seconds for the first one.

        Args:
            confirmed: number of the last message that the driver has dealt with.
        """
        while self._kept and self._kept[0][0] <= confirmed:
            self._kept.popleft()
        if not self._kept:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except TimeoutError:
                return []
        return list(self._kept)

    async def answer(self, attempt: str, answer: Any) -> None:
        """The driver's answer to what an attempt asked."""
        waiting = self._answers.pop(attempt, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def limit(self, seconds: Mapping[str, float]) -> None:
        """How much each attempt may spend in all: read with its next message."""
        self._limits = dict(seconds)


Answer = Terms | TimeLimit | str | bool
"""What the driver answers."""
