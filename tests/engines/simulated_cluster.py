"""A Ray cluster whose clock is a number: what the engine decides about money is the same on every machine, under any load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.journal import Piece
from dollartune.budget.ledger import Ledger
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.display import Display
from dollartune.engines.payload import Began, Job, Loaded, Message, Payload, Recorded, Report, Terms
from dollartune.engines.ray import RayEngine
from dollartune.engines.ray_cluster import LOSSES, Node
from dollartune.trials.expand import plan
from dollartune.trials.trial import Trial


class RayError(Exception):
    """Something was lost."""


class ActorDiedError(RayError):
    """An actor was lost, and Ray has tried its call often enough."""


@dataclass(eq=False)
class Reference:
    """An answer that comes at some moment."""

    value: Any = None
    ready: bool = False

    def set(self, value: Any) -> None:
        self.value, self.ready = value, True


class Channel:
    """The actor between the driver and its workers."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.wanted: Reference | None = None
        self.asking: dict[str, Callable[[Any], None]] = {}
        for name in ("say", "next", "answer"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _say(self, message: Any) -> None:
        self.said.append(message)
        self._hand_over()

    def _next(self) -> Reference:
        self.wanted = Reference()
        self._hand_over()
        return self.wanted

    def _hand_over(self) -> None:
        if self.wanted is not None and not self.wanted.ready and self.said:
            self.wanted.set(self.said.pop(0))

    def _answer(self, attempt: str, answer: Any) -> None:
        self.asking.pop(attempt)(answer)


@dataclass
class Work:
    """How long things take on a worker, in seconds."""

    start: float = 5.0
    load: float = 3.0
    train: float = math.inf
    """By itself; a time limit ends it."""
    late: float = 0.0
    """How long after its time limit a worker is done: it closes its books, and the driver hears of it."""
    checkpoints: bool = True
    """As often as the engine wants them."""
    crashes: bool = False
    """It loses its process five seconds after it has loaded."""


class Worker:
    """An actor that keeps to its time limit, and says each second what it has spent. Ray restarts it where there is room."""

    def __init__(self, cluster: SimulatedCluster, payload: Payload, channel: Channel) -> None:
        self.cluster, self.payload, self.channel = cluster, payload, channel
        self.node: Node | None = None
        self.job: Job | None = None
        self.call: Reference | None = None
        self.losses = 0
        self.life = 0
        """Of its process: what an earlier one was about to do does not happen."""
        self.run = SimpleNamespace(remote=self._run)

    @property
    def work(self) -> Work:
        assert self.node is not None
        return self.cluster.work(self.node)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        life = self.life
        self.cluster.at(self.cluster.now + seconds, lambda: action() if self.life == life else None)

    def start(self) -> None:
        """As soon as there is room for it."""
        self.node = self.cluster.room()
        if self.node is None:
            return
        began = self._begin
        self.later(self.work.start, lambda: began() if self.job is not None else None)

    def lose(self) -> None:
        """Its process is gone."""
        self.life, self.node, self.losses = self.life + 1, None, self.losses + 1
        if self.call is not None and self.losses > LOSSES:
            self.call.set(ActorDiedError("The actor died unexpectedly before finishing this task."))

    def _run(self, job: Job) -> Reference:
        self.job, self.call, self.losses = job, Reference(), 0
        if self.node is None:
            self.start()
        else:
            self.later(0.0, self._begin)
        return self.call

    def _say(self, kind: Any, *values: Any, **named: Any) -> Message:
        assert self.job is not None
        spent, self.spent = self.spent, []
        message: Message = kind(self.job.identifier, self.attempt, spent, frozenset(), *values, **named)
        self.channel.say.remote(message)
        return message

    def _ask(self, kind: Any, *values: Any, then: Callable[[Any], None]) -> None:
        life = self.life
        self.channel.asking[self.attempt] = lambda answer: then(answer) if self.life == life else None
        self._say(kind, *values)

    def _begin(self) -> None:
        assert self.node is not None
        self.attempt, self.numbers, self.spent = f"attempt {next(self.cluster.counter)}", itertools.count(), []
        self._ask(Began, self.node.identifier, self.cluster.missing, then=self._load)

    def _spend(self, kind: str, trial: Trial | None, seconds: float) -> None:
        name, method = (None, None) if trial is None else (trial.identifier, trial.variant.group)
        price, booking = self.terms.price_per_hour, f"{self.attempt} {kind}"
        piece = Piece(self.attempt, next(self.numbers), booking, kind, name, method, seconds, price, 0.0)
        self.spent.append(piece)

    def _for(self, seconds: float, kind: str, trial: Trial | None, then: Callable[[], None], saves: bool) -> None:
        """Works for so long, second by second."""

        def second(number: int) -> None:
            left = seconds - number
            if left <= 1.0:
                self.later(max(0.0, left), lambda: (self._spend(kind, trial, left), then()))  # type: ignore[func-returns-value]
                return
            self.later(1.0, lambda: step(number + 1))

        def step(number: int) -> None:
            self._spend(kind, trial, 1.0)
            self._say(Report, saved=saves and number % self.payload.checkpoint_seconds == 0)
            second(number)

        second(0)

    def _load(self, terms: Terms) -> None:
        self.terms, job = terms, self.job
        assert job is not None
        limit = math.inf if terms.limit_seconds is None else terms.limit_seconds
        names = tuple(trial.identifier for trial in job.cohort.trials)
        cannot = self.work.load > limit

        def loaded() -> None:
            if cannot:
                self._end("budget")
            else:
                self._ask(Loaded, names, 0.01, 0.01, then=self._train)

        self._for(min(self.work.load, limit), "load", None, loaded, False)

    def _train(self, limit: Any) -> None:
        assert self.job is not None
        if isinstance(limit, BudgetSpent):
            self._end("budget")
            return
        if self.work.crashes:
            self.later(5.0, lambda: self.cluster.lose(self))
        seconds = min(limit.seconds + self.work.late, self.work.train)
        trial = self.job.cohort.trials[0]
        self._for(seconds, "tune", trial, lambda: self._end("done"), self.work.checkpoints)

    def _end(self, record: str) -> None:
        assert self.job is not None
        assert self.call is not None
        for trial in self.job.cohort.trials:
            if trial.identifier not in self.terms.recorded:
                self._say(Recorded, trial.identifier, record, ())
        self._say(Report)
        self.job = None
        self.call.set(None)


@dataclass
class SimulatedCluster:
    """Machines that may come and go at given moments."""

    machines: list[Node]
    work: Callable[[Node], Work] = lambda node: Work()
    leaves: dict[str, float] = field(default_factory=dict)
    """Machine -> the moment at which it is lost."""
    joins: dict[str, float] = field(default_factory=dict)
    missing: Path | None = None
    """What its machines do not see of the study's disk."""
    now: float = 0.0
    gpus: float = 0.0
    used: list[str] = field(default_factory=list)
    """Machines on which workers were started."""

    def __post_init__(self) -> None:
        self.ray = self
        kinds = {name: type(name, (RayError,), {}) for name in ("RayTaskError", "OutOfMemoryError", "RayActorError")}
        self.exceptions = SimpleNamespace(RayError=RayError, **kinds)
        self.workers: list[Worker] = []
        self.counter = itertools.count()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        for name, moment in self.leaves.items():
            self.at(moment, lambda name=name: self._leave(name))
        for moment in self.joins.values():
            self.at(moment, self.restart)

    def clock(self) -> float:
        return self.now

    def at(self, moment: float, action: Callable[[], None]) -> None:
        self.agenda.append((moment, next(self.counter), action))

    # Machines

    def nodes(self) -> dict[str, Node]:
        return {
            node.identifier: node
            for node in self.machines
            if self.joins.get(node.identifier, 0) <= self.now < self.leaves.get(node.identifier, math.inf)
        }

    def room(self) -> Node | None:
        """A machine with a free part."""
        taken = [worker.node.identifier for worker in self.workers if worker.node is not None]
        free = [node for node in self.nodes().values() if taken.count(node.identifier) < node.slots]
        if free:
            self.used.append(free[0].identifier)
        return free[0] if free else None

    def _leave(self, name: str) -> None:
        for worker in [one for one in self.workers if one.node is not None and one.node.identifier == name]:
            self.lose(worker)

    def lose(self, worker: Worker) -> None:
        worker.lose()
        self.restart()

    def restart(self) -> None:
        """What Ray does with actors that were lost."""
        for worker in self.workers:
            if worker.node is None:
                worker.start()

    # The cluster

    @property
    def slot_price(self) -> float:
        return max(node.slot_price for node in self.machines)

    def actor(self, kind: type, payload: Any, channel: Channel) -> Worker:
        self.workers.append(Worker(self, payload.value, channel))
        return self.workers[-1]

    def channel(self) -> Channel:
        return Channel()

    def close(self) -> None:
        assert not self.workers, "a worker was forgotten"

    # Ray

    def put(self, value: Any) -> Reference:
        return Reference(value, True)

    def get(self, reference: Reference) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def wait(self, references: list[Reference], num_returns: int, timeout: float) -> tuple[list[Reference], list[Any]]:
        until = self.now + timeout
        while not any(one.ready for one in references):
            self.agenda.sort()
            if not self.agenda or self.agenda[0][0] > until:
                self.now = until
                break
            moment, _, action = self.agenda.pop(0)
            self.now = max(self.now, moment)
            action()
        return [one for one in references if one.ready][:num_returns], []

    def kill(self, actor: Worker | Channel, no_restart: bool) -> None:
        if isinstance(actor, Worker):
            actor.life, actor.node = actor.life + 1, None
            self.workers.remove(actor)
            self.restart()


class SimulatedStudy:
    """A driver: equal shares for all trials that wait."""

    def __init__(self, settings: StudySettings, cluster: SimulatedCluster, folder: Path, **ledger: Any) -> None:
        self.settings, self.cluster, self.root = settings, cluster, folder
        self.trials, tasks, _ = plan(settings)
        self.ledger = Ledger(clock=cluster.clock, own_price=0.0, heartbeat_seconds=0, **ledger)
        self.records: dict[str, Any] = {}
        self.engine = RayEngine(self, settings, tasks, 0, cluster, Display(), cluster.clock)  # type: ignore[arg-type]

    def run(self, *cohorts: Cohort) -> None:
        with self.ledger.book("other"):
            self.engine.run(cohorts or [Cohort((trial,)) for trial in self.trials])
            self.engine.close()

    def folder(self, trial: str) -> Path:
        return self.root / trial

    def has(self, trial: str) -> bool:
        return trial in self.records

    def leave(self, trial: Trial, record: Any, predictions: Any = ()) -> None:
        assert trial.identifier not in self.records or self.records[trial.identifier] == "tried", "recorded twice"
        self.records[trial.identifier] = record

    def time_limit(self, cohort: Cohort, context: Any) -> TimeLimit:
        method = cohort.trials[0].variant.group if self.ledger.per == "method" else None
        waiting = [t for t in self.trials if not self.has(t.identifier) and method in (None, t.variant.group)]
        left = self.ledger.remaining(method) * len(cohort.trials) / len(waiting)
        if left <= 1.0:
            raise BudgetSpent("nothing is left")
        return TimeLimit(left, 0.0, method)

    # What came out

    def ends(self) -> list[str]:
        """`done`, or the class of the failure, of each trial."""
        return [r if isinstance(r, str) else r.error.kind for r in (self.records[t.identifier] for t in self.trials)]
