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
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
from dollartune.engines.display import Display
from dollartune.engines.ray import RayEngine
from dollartune.engines.ray_cluster import Node
from dollartune.engines.ray_worker import Job
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.expand import plan
from dollartune.trials.trial import Trial

CHECKPOINT_SECONDS = 10.0


class RayError(Exception):
    """Something was lost."""


class ActorDiedError(RayError):
    """An actor was lost."""


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
        self.calls: list[Any] = []
        self.wanted: Reference | None = None
        self.answers: dict[int, Callable[[Any], None]] = {}
        self.numbers = itertools.count()
        self.next = SimpleNamespace(remote=self._next)
        self.answer = SimpleNamespace(remote=lambda number, answer: self.answers.pop(number)(answer))

    def call(self, job: str, method: str, *arguments: Any, then: Callable[[Any], None]) -> None:
        """A worker's call; it goes on with the answer."""
        number = next(self.numbers)
        self.answers[number] = then
        self.calls.append((number, job, method, arguments))
        self._hand_over()

    def _next(self) -> Reference:
        self.wanted = Reference()
        self._hand_over()
        return self.wanted

    def _hand_over(self) -> None:
        if self.wanted is not None and not self.wanted.ready and self.calls:
            self.wanted.set(self.calls.pop(0))


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
    """Every `CHECKPOINT_SECONDS`."""
    crashes: bool = False
    """It loses its process five seconds after it has loaded."""
    crashes_at_end: bool = False
    """It loses its process once it has left all records."""
    error: Exception | None = None
    """What Ray says of a bug that ends its call once it has loaded."""


class Worker:
    """An actor that keeps to its time limit. What is lost stays lost."""

    def __init__(self, cluster: SimulatedCluster, channel: Channel) -> None:
        self.cluster, self.channel = cluster, channel
        self.node: Node | None = None
        self.up = self.lost = False
        self.job: Job | None = None
        self.call = Reference()
        self.life = 0
        """Of its process: what it was about to do before it was lost does not happen."""
        self.spent: list[Piece] = []
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
        if self.node is not None:
            self.later(self.work.start, self._begin)

    def lose(self) -> None:
        """Its process is gone."""
        self.life, self.node, self.lost = self.life + 1, None, True
        if self.job is not None:
            self.call.set(ActorDiedError("The actor died unexpectedly before finishing this task."))

    def _run(self, job: Job, rows: Reference) -> Reference:
        self.job, self.call = job, Reference()
        self.cluster.jobs.append(job)
        if self.lost:
            self.lose()
        elif self.up:
            self.later(0.0, self._begin)
        else:
            self.start()
        return self.call

    def _call(self, method: str, *arguments: Any, then: Callable[[Any], None]) -> None:
        assert self.job is not None
        life = self.life
        self.channel.call(
            self.job.identifier, method, *arguments, then=lambda answer: then(answer) if self.life == life else None
        )

    def _book(self, saved: bool, then: Callable[[], None]) -> None:
        spent, self.spent = self.spent, []
        self._call("book", spent, frozenset(), saved, then=lambda _: then())

    def _begin(self) -> None:
        assert self.node is not None
        self.up, self.session, self.numbers = True, f"session {next(self.cluster.counter)}", itertools.count()
        self._call("begin", self.node.identifier, self.cluster.missing, then=self._load)

    def _spend(self, kind: str, trial: Trial | None, seconds: float) -> None:
        name, method = (None, None) if trial is None else (trial.identifier, trial.variant.group)
        booking = f"{self.session} {kind}"
        self.spent.append(
            Piece(self.session, next(self.numbers), booking, kind, name, method, seconds, self.price, 0.0)
        )

    def _for(self, seconds: float, kind: str, trial: Trial | None, then: Callable[[], None], saves: bool) -> None:
        """Works for so long, second by second."""

        def second(number: int) -> None:
            left = seconds - number
            if left <= 1.0:
                self.later(max(0.0, left), lambda: (self._spend(kind, trial, left), then()))  # type: ignore[func-returns-value]
            else:
                self.later(1.0, lambda: step(number + 1))

        def step(number: int) -> None:
            self._spend(kind, trial, 1.0)
            if saves and number % CHECKPOINT_SECONDS == 0:
                self._book(True, lambda: second(number))
            else:
                second(number)

        second(0)

    def _load(self, terms: tuple[float, float | None]) -> None:
        assert self.job is not None
        cohort = self.job.cohort
        self.price, limit = terms[0], math.inf if terms[1] is None else terms[1]
        cannot = self.work.load > limit

        def loaded() -> None:
            if self.work.error is not None:
                self.call.set(self.work.error)
            elif cannot:
                self._end("budget")
            else:
                self._book(
                    False,
                    lambda: self._call("time_limit", cohort, EvaluationCost(10, 10, 0.01, 0.01), then=self._train),
                )

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
        missing = [trial for trial in self.job.cohort.trials if trial.identifier not in self.job.recorded]

        def heard(answer: Exception | None) -> None:
            if answer is None:
                leave()
            else:
                self.job, error = None, self.cluster.exceptions.RayTaskError(str(answer))
                error.cause = answer
                self.call.set(error)

        def leave() -> None:
            if missing:
                trial = missing.pop(0)
                self._book(False, lambda: self._call("leave", trial, record, (), then=heard))
            else:
                self._book(False, end)

        def end() -> None:
            if self.work.crashes_at_end:
                self.cluster.lose(self)
                return
            self.job = None
            self.call.set(None)

        leave()


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
    jobs: list[Job] = field(default_factory=list)
    """That workers were given."""

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
        """What Ray does with actors for which there was no room."""
        for worker in self.workers:
            if worker.node is None and worker.job is not None and not worker.lost:
                worker.start()

    # The cluster

    @property
    def slot_price(self) -> float:
        return max(node.slot_price for node in self.machines)

    def actor(self, kind: type, settings: Any, tasks: Any, places: int, channel: Channel, folder: Path) -> Worker:
        self.workers.append(Worker(self, channel))
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

    def kill(self, actor: Worker | Channel) -> None:
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
        self.engine = RayEngine(self, settings, tasks, 0, cluster, Display())  # type: ignore[arg-type]

    def run(self, *cohorts: Cohort) -> None:
        with self.ledger.book("other"):
            self.engine.run(cohorts or [Cohort((trial,)) for trial in self.trials])
            self.engine.close()

    def folder(self, trial: str) -> Path:
        return self.root / trial

    def checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.root / cohort / "checkpoint")

    def has(self, trial: str) -> bool:
        return trial in self.records

    def read(self, trial: str) -> Any:
        return self.records[trial]

    def leave(self, trial: Trial, record: Any, predictions: Any = ()) -> None:
        before = self.records.get(trial.identifier)
        assert before is None or getattr(before, "status", before) == "tried", "recorded twice"
        self.records[trial.identifier] = record

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
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
