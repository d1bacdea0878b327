"""A Ray cluster whose clock is a number: what the engine decides about money is the same on every machine, under any load."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.display import Display
from dollartune.engines.payload import Ended, Job, Loaded, Recorded, Report, Started
from dollartune.engines.ray import RayEngine
from dollartune.engines.ray_cluster import Node
from dollartune.engines.worker_account import Entry, Spent
from dollartune.trials.expand import plan
from dollartune.trials.trial import Trial


class RayError(Exception):
    """Something was lost."""


class WorkerCrashedError(RayError):
    """A process was lost."""


class NodeDiedError(RayError):
    """A machine was lost."""


@dataclass(eq=False)
class Reference:
    """An answer that comes at a moment."""

    at: float
    value: Any


class Queue:
    """Ray's queue: events with the moments at which they arrive, in order."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster, self.events = cluster, list[Any]()
        self.actor = SimpleNamespace(get=SimpleNamespace(remote=lambda timeout: NextEvent(self)))

    def put(self, event: Any, at: float | None = None) -> None:
        at = self.cluster.now if at is None else at
        index = next((n for n, (moment, _) in enumerate(self.events) if moment > at), len(self.events))
        self.events.insert(index, (at, event))

    def shutdown(self, force: bool) -> None:
        self.events.clear()


@dataclass(eq=False)
class NextEvent:
    """The next event of a queue."""

    queue: Queue

    @property
    def at(self) -> float:
        return self.queue.events[0][0] if self.queue.events else math.inf

    @property
    def value(self) -> Any:
        return self.queue.events.pop(0)[1]


@dataclass
class Work:
    """How long things take on a worker, in seconds."""

    start: float = 5.0
    load: float = 3.0
    train: float = math.inf
    """By itself; a time limit ends it."""
    late: float = 0.0
    """How long after its time limit a worker is done: it closes its books, and the driver hears of it."""


class Worker:
    """An actor that keeps to its time limit, and says each second what it has spent."""

    def __init__(self, cluster: SimulatedCluster, node: Node, events: Queue) -> None:
        self.cluster, self.node, self.events = cluster, node, events
        self.work = cluster.work(node)
        self.pending: list[Reference] = []
        self.job: Job | None = None
        self.spent: dict[Entry, float] = {}
        self.began = cluster.now
        for name in ("start", "load", "run"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _answer(self, seconds: float, value: Any) -> Reference:
        self.pending.append(Reference(self.cluster.now + seconds, value))
        return self.pending[-1]

    def _start(self) -> Reference:
        return self._answer(self.work.start, Started(self.node.identifier, 1, self.cluster.missing))

    def _book(self, kind: str, trial: Trial | None, seconds: float) -> Callable[[float], Spent]:
        assert self.job is not None
        entry = Entry(f"{self.job.identifier}-{kind}", kind, trial and trial.identifier, trial and trial.variant.group)
        before = dict(self.spent)
        self.spent[entry] = seconds
        return lambda elapsed: Spent({**before, entry: min(elapsed, seconds)})

    def _load(self, job: Job) -> Reference:
        self.job, self.spent = job, {}
        seconds = min(self.work.load, job.limit_seconds)
        said = self._book("load", None, seconds)
        self._say(seconds, lambda elapsed: Report(job.identifier, said(elapsed)))
        return self._answer(seconds, Loaded(0.01, 0.01) if seconds == self.work.load else None)

    def _run(self, limit: TimeLimit) -> Reference:
        job = self.job
        assert job is not None
        trial = job.cohort.trials[0]
        seconds = min(limit.seconds + self.work.late, self.work.train)
        said = self._book("tune", trial, seconds)
        self._say(seconds, lambda elapsed: Report(job.identifier, said(elapsed)))
        self.events.put(
            Recorded(job.identifier, said(seconds), trial.identifier, "done"), self.cluster.now + seconds - 1e-6
        )
        return self._answer(seconds, Ended(said(seconds)))

    def _say(self, seconds: float, report: Callable[[float], Report]) -> None:
        for second in range(1, int(min(seconds, 10_000)) + 1):
            self.events.put(replace(report(float(second)), saved=second % 10 == 0), self.cluster.now + second)


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
    lives: list[tuple[Worker, float]] = field(default_factory=list)
    """Workers and the moments at which they were let go."""

    def __post_init__(self) -> None:
        self.ray = self
        self.exceptions = SimpleNamespace(
            RayError=RayError, RayActorError=RayError, NodeDiedError=NodeDiedError,
            RayTaskError=type("RayTaskError", (RayError,), {}), OutOfMemoryError=type("Full", (RayError,), {}),
        )  # fmt: skip
        self.workers: list[Worker] = []

    def clock(self) -> float:
        return self.now

    # The cluster

    def nodes(self) -> dict[str, Node]:
        return {
            node.identifier: node
            for node in self.machines
            if self.joins.get(node.identifier, 0) <= self.now < self.leaves.get(node.identifier, math.inf)
        }

    @property
    def slot_price(self) -> float:
        return max(node.slot_price for node in self.machines)

    def actor(self, kind: type, payload: Any, events: Queue) -> Worker:
        taken = [worker.node.identifier for worker in self.workers]
        node = next(node for node in self.nodes().values() if taken.count(node.identifier) < node.slots)
        self.workers.append(Worker(self, node, events))
        return self.workers[-1]

    def queue(self) -> Queue:
        return Queue(self)

    def close(self) -> None:
        assert not self.workers, "a worker was forgotten"

    # Ray

    def put(self, value: Any) -> Reference:
        return Reference(0.0, value)

    def get(self, reference: Any) -> Any:
        for worker in self.workers:
            if reference in worker.pending and self.leaves.get(worker.node.identifier, math.inf) <= self.now:
                raise NodeDiedError("the machine is gone")
        return reference.value

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        def ready() -> list[Any]:
            lost = [
                reference
                for worker in self.workers
                if self.leaves.get(worker.node.identifier, math.inf) <= self.now
                for reference in worker.pending
            ]
            return [one for one in references if one.at <= self.now or one in lost][:num_returns]

        if not ready() and timeout:
            self.now = min([self.now + timeout, *(one.at for one in references)])
        return ready(), []

    def kill(self, actor: Worker, no_restart: bool) -> None:
        self.workers.remove(actor)
        self.lives.append((actor, min(self.now, self.leaves.get(actor.node.identifier, math.inf))))
        actor.events.events = [
            (at, event)
            for at, event in actor.events.events
            if at <= self.now or actor.job is None or event.job != actor.job.identifier
        ]


class SimulatedStudy:
    """A driver: equal shares for all trials that wait."""

    def __init__(self, settings: StudySettings, cluster: SimulatedCluster, folder: Path, **ledger: Any) -> None:
        self.settings, self.cluster, self.root = settings, cluster, folder
        self.trials, tasks, _ = plan(settings)
        self.ledger = Ledger(clock=cluster.clock, own_price=0.0, heartbeat_seconds=0, **ledger)
        self.records: dict[str, Any] = {}
        self.engine = RayEngine(self, settings, tasks, 0, cluster, Display(), cluster.clock)  # type: ignore[arg-type]

    def run(self) -> None:
        with self.ledger.book("other"):
            self.engine.run([Cohort((trial,)) for trial in self.trials])
            self.engine.close()

    def folder(self, trial: str) -> Path:
        return self.root / trial

    def has(self, trial: str) -> bool:
        return trial in self.records

    def leave(self, trial: Trial, record: Any, predictions: Any = ()) -> None:
        assert trial.identifier not in self.records, "recorded twice"
        self.records[trial.identifier] = record

    def time_limit(self, cohort: Cohort, context: Any) -> TimeLimit:
        method = cohort.trials[0].variant.group if self.ledger.per == "method" else None
        waiting = [t for t in self.trials if not self.has(t.identifier) and method in (None, t.variant.group)]
        left = self.ledger.remaining(method) / len(waiting)
        if left <= 1.0:
            raise BudgetSpent("nothing is left")
        return TimeLimit(left, 0.0, method)

    # What came out

    def ends(self) -> list[str]:
        """`done`, or the class of the failure, of each trial."""
        return [r if isinstance(r, str) else r.error.kind for r in (self.records[t.identifier] for t in self.trials)]

    def paid(self) -> float:
        """Seconds that workers lived, whatever they did."""
        return sum(until - worker.began for worker, until in self.cluster.lives)
