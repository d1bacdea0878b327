"""The engine of a Ray cluster: one actor per worker, cohorts side by side, each worker on a part of a machine.

    waiting cohorts  ->  start -> load -> time limit -> run  ->  records          (calls of a worker's actor)
                                                   <- events -                    (Ray's queue, here)

Store and ledger are written by this process alone. What is recorded is never done again, so that a lost worker costs what
it did since the cohort's last checkpoint, which lies in the study's folder. It goes on with any worker that is free.

Ray's own retries are off (`max_restarts=0`), though they would be safe: they would bring a lost actor back only where its
part of a machine is free again, while the worker next to it has nothing to do; and they would repeat a call with the time
limit of its first attempt, which is spent in part.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dollartune.budget.deadline_signal import closing_seconds
from dollartune.budget.ledger import BudgetSpent
from dollartune.engines.base import Cohort, Driver, Pruning, TimeLimit
from dollartune.engines.payload import (
    Ended,
    Event,
    Job,
    Loaded,
    Payload,
    Question,
    Recorded,
    Report,
    Started,
    packed_splits,
    packed_task,
    shared_paths,
    whole_paths,
)
from dollartune.engines.ray_retry import LOSSES, Attempt, GiveUp, check_import, next_attempts
from dollartune.engines.worker_account import WorkerAccount, clock_seconds_left, seconds_per_second
from dollartune.errors import UserError
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import Cost

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.display import Display
    from dollartune.engines.ray_cluster import Cluster, Node
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.tasks.base import Splits, Task
    from dollartune.trials.trial import Trial

LOOK_SECONDS = 0.5
"""How often the driver looks at machines and money: a small part of the seconds that are kept for closing an account."""
ALONE_SECONDS = 600.0
"""How long a study waits for a machine when it has lost all: a cluster of spot machines is refilled in minutes."""

_UNPAID = (
    "the money was spent before this trial could begin: waiting for a machine, starting there and loading took the rest. "
    "With a larger budget the same command runs it."
)


@dataclass
class _Timed:
    """What a cohort costs at the ledger's price. See `engines.base.EvaluationCost`."""

    splits: Splits
    seconds_per_row: float | None
    seconds_per_validation_row: float


@dataclass(eq=False)
class _Worker:
    """An actor, as the driver sees it."""

    actor: Any
    account: WorkerAccount
    call: Any
    """Ray's reference to the answer that is awaited; None while it waits for work."""
    node: Node | None = None
    """Its machine, once it has started."""
    process: int = 0
    attempt: Attempt | None = None
    """What it does."""
    limit: TimeLimit | None = None
    """What that may spend, in the worker's seconds, once it is loaded."""
    spent_before: float = 0.0
    """What the worker's account said when the limit (or loading) began."""
    workers: int = 0
    """How many workers there were then: with a budget in common, so many share what is left."""

    def unspent(self) -> float:
        """What is left of its limit, in the worker's seconds."""
        spent = self.account.seconds() - self.spent_before
        return 0.0 if self.limit is None else max(0.0, self.limit.seconds - spent)


@dataclass
class _Rows:
    """Rows of one task and scale, and the reference under which workers find them."""

    splits: Splits
    reference: Any = field(repr=False)


class RayEngine:
    """Runs cohorts on the machines of a Ray cluster.

    Args:
        driver: whom to ask for time limits, and with whom records are left.
        settings: the study.
        tasks: of the study, with their rows.
        places: places in each input that stay free for virtual tokens.
        cluster: the machines.
        display: who shows progress.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        driver: Driver,
        settings: StudySettings,
        tasks: Iterable[Task],
        places: int,
        cluster: Cluster,
        display: Display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.driver, self.settings, self.tasks, self.places = driver, settings, list(tasks), places
        self.cluster, self.display, self.clock = cluster, display, clock
        self.ray = cluster.ray
        self.slots = sum(node.slots for node in cluster.nodes().values())
        self.device = "cuda" if cluster.gpus else "cpu"
        self.checkpoint_seconds = 10.0
        """Least time between two checkpoints of a cohort: what a lost machine costs at most."""
        self.report_seconds = 1.0
        """How often a worker says what it has spent: so much of its time may go unseen when it is lost."""
        self.worker_clock: Callable[[], float] = time.monotonic
        ledger = driver.ledger
        self.limited = ledger.limit_seconds is not None or ledger.limit_dollars is not None
        # In a fair fight no method pays for what another one leaves idle: there only work is booked.
        self.pays_waiting = settings.engine.idle and ledger.per == "study"
        self._payload: Any = None
        self._events: Any = None
        self._next_event: Any = None
        self._rows: dict[tuple[int, int | None, int | None], _Rows] = {}
        self._nodes: dict[str, Node] = {}
        self._workers: list[_Worker] = []
        self._waiting: deque[Attempt] = deque()
        self._looked = self._seen_alive = clock()
        self._failed_starts = 0
        """In a row."""
        self._prune: Pruning | None = None
        self._measured: Ended | None = None

    # The engine's verbs

    def run(self, cohorts: Iterable[Cohort], prune: Pruning | None = None) -> None:
        self._prune = prune
        self._work([Attempt(cohort, self.settings.training) for cohort in cohorts])

    def measure(self, trial: Trial) -> TrialCost:
        self._measured = None
        self._work([Attempt(Cohort((trial,)), self.settings.training, measures=True)])
        if self._measured is None or self._measured.trial_cost is None:
            raise BudgetSpent(_UNPAID if self._measured is None else self._measured.unpaid or _UNPAID)
        return self._measured.trial_cost

    def close(self) -> None:
        for worker in list(self._workers):
            self._dismiss(worker)
        if self._events is not None:
            self._events.shutdown(force=True)
            self._marker.unlink(missing_ok=True)
        self.cluster.close()

    # The driver's loop

    def _work(self, attempts: Iterable[Attempt]) -> None:
        if self._payload is None:
            self._open()
        with self.driver.ledger.elsewhere():
            self._waiting.extend(attempts)
            self._look()
            try:
                while self._waiting or any(worker.attempt is not None for worker in self._workers):
                    if self.clock() - self._looked >= LOOK_SECONDS:
                        self._look()
                    self._hire()
                    self._end_unpaid()
                    self._assign()
                    self._wait()
            finally:  # Ctrl-C, an error: records and checkpoints are here, the time is booked
                self._waiting.clear()
                for worker in [worker for worker in self._workers if worker.attempt is not None]:
                    self._dismiss(worker)

    def _open(self) -> None:
        """The queue of events, on this machine (it lives and dies with the driver), and what every worker gets."""
        self._events = self.cluster.queue()
        self._next_event = self._events.actor.get.remote(None)
        settings = whole_paths(self.settings)
        folder = self.driver.folder("").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        # of this run: a folder of the same name on another machine's disk does not have it
        # A worker that sees it shares this disk, and may write checkpoints and adapters where they belong.
        self._marker = folder.parent / f".shared-{uuid.uuid4().hex[:12]}"
        self._marker.touch()
        self._payload = self.ray.put(
            Payload(
                settings, tuple(packed_task(task) for task in self.tasks), self.places, folder,
                (self._marker, *shared_paths(settings)), self.limited, self.driver.ledger.per == "method",
                self.checkpoint_seconds, self.report_seconds, self.worker_clock,
            )
        )  # fmt: skip

    def _look(self) -> None:
        """Which machines there are."""
        self._looked = self.clock()
        before, self._nodes = self._nodes, self.cluster.nodes()
        for node in before.values():
            if node.identifier not in self._nodes:
                self.display.note(f"the machine {node.address} is lost; what ran there goes on from its checkpoints.")
        self.slots = sum(node.slots for node in self._nodes.values())
        if self.slots:
            self._seen_alive = self._looked
        elif self._looked - self._seen_alive > ALONE_SECONDS:
            raise UserError(
                f"the cluster has had no machine with room for a cohort for {ALONE_SECONDS / 60:.0f} minutes.",
                hint="Add machines and run the same command: it goes on from the checkpoints.",
            )

    def _hire(self) -> None:
        """As many workers as there is work and room for."""
        busy = [worker for worker in self._workers if worker.attempt is not None]
        wanted = min(self.slots, len(busy) + len(self._waiting))
        # One more worker would have to be paid out of limits that are granted already.
        if self.limited and self.pays_waiting:  # those that run were told how many share the money
            wanted = min([wanted, *(worker.workers for worker in busy if worker.limit is not None)])
        from dollartune.engines.ray_worker import RayWorker  # what trains: nothing of it runs in this process

        while len(self._workers) < wanted:
            actor = self.cluster.actor(RayWorker, self._payload, self._events)
            account = WorkerAccount(self.driver.ledger, self.cluster.slot_price, self.pays_waiting, self.clock)
            self._workers.append(_Worker(actor, account, actor.start.remote()))

    def _assign(self) -> None:
        """What waits longest goes to workers that have started and are free."""
        for worker in [one for one in self._workers if one.call is None]:
            if self._waiting:
                self._load(worker, self._waiting.popleft())

    def _wait(self) -> None:
        """Until something happens, at most until the next look."""
        calls = {worker.call: worker for worker in self._workers if worker.call is not None}
        # First whatever is there, all of it: with `num_returns=1` a busy worker could keep the others waiting.
        ready, _ = self.ray.wait([self._next_event, *calls], num_returns=1 + len(calls), timeout=0)
        if not ready:
            ready, _ = self.ray.wait([self._next_event, *calls], num_returns=1, timeout=LOOK_SECONDS)
        # Events before answers: an answer ends an attempt, and a record that it left must be read by then.
        answered = [calls[one] for one in ready if one in calls]
        if answered:
            self._read_all()  # what was said before the calls ended
        elif ready:
            self._read(self._take())
        for worker in answered:
            if worker not in self._workers:
                continue
            call, worker.call = worker.call, None
            try:
                answer = self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                self._lost(worker, error)
            else:
                self._answered(worker, answer)

    # What a worker is told

    def _load(self, worker: _Worker, attempt: Attempt) -> None:
        cohort, ledger = attempt.cohort, self.driver.ledger
        names = [trial.identifier for trial in cohort.trials]
        method = self._account_of(attempt)
        worker.attempt, worker.limit, worker.workers = attempt, None, len(self._workers)
        worker.spent_before = worker.account.seconds()
        # loading is limited too: until the cohort has its own limit it may take what nobody else was granted
        # No reserve yet: nothing is trained while loading.
        worker.limit = TimeLimit(self._most(worker, method), 0.0, method)
        pieces = [piece for piece in ledger.pieces()[0] if piece.trial in names]
        spent = {
            name: (
                sum(piece.seconds for piece in pieces if piece.trial == name),
                sum(piece.dollars for piece in pieces if piece.trial == name),
            )
            for name in names
        }
        job = Job(
            attempt.identifier, cohort, attempt.training, self._rows_of(cohort.trials[0]).reference,
            worker.account.price_per_hour, worker.limit.seconds,
            frozenset(name for name in names if self.driver.has(name)), spent, self._prune is not None,
        )  # fmt: skip
        attempt.loading = True
        worker.call = worker.actor.load.remote(job)

    def _answered(self, worker: _Worker, answer: Started | Loaded | Ended | None) -> None:
        if isinstance(answer, Started):
            self._started(worker, answer)
            return
        attempt = worker.attempt
        assert attempt is not None
        if isinstance(answer, Ended):
            # Before it is kept, since the last report came up to a second ago.
            worker.account.report(answer.spent)
            worker.account.keep()
            worker.attempt = worker.limit = None
            if attempt.measures:
                self._measured = answer
            elif self._missing(
                attempt
            ):  # every trial leaves a record; if one did not, it is as if the process had died
                self._follow(attempt, worker, RuntimeError("it ended without a record"))
            return
        attempt.loading = False
        if attempt.measures:
            worker.call = worker.actor.measure.remote()
            return
        try:
            limit = self._time_limit(worker, attempt, answer)
        except BudgetSpent as error:
            worker.account.keep()
            worker.attempt = worker.limit = None
            self._fail(attempt, GiveUp("budget", str(error)), worker.account.price_per_hour)
            return
        worker.limit, worker.workers, worker.spent_before = limit, len(self._workers), worker.account.seconds()
        worker.call = worker.actor.run.remote(limit)

    def _started(self, worker: _Worker, answer: Started) -> None:
        if answer.node not in self._nodes:
            self._nodes = self.cluster.nodes()
        worker.node, worker.process = self._nodes.get(answer.node), answer.process
        if worker.node is None:  # lost again already: the next call will say so
            return
        worker.account.price_per_hour = worker.node.slot_price
        self._failed_starts = 0
        if answer.missing is not None:
            shown = answer.missing.parent if answer.missing == self._marker else answer.missing
            raise UserError(
                f"the machine {worker.node.address} does not see {shown}: a study on a cluster needs its folder, and what "
                "it trains on, under the same path on every machine.",
                hint="Put them on a disk that all machines share: dollartune run STUDY.yaml --output /shared/studies",
            )

    def _time_limit(self, worker: _Worker, attempt: Attempt, loaded: Loaded | None) -> TimeLimit:
        """What an attempt may spend, in the worker's seconds.

        Raises:
            BudgetSpent: it could not even be evaluated with that.
        """
        if loaded is None:  # it will fail as loading did: with what loading was allowed to take
            assert worker.limit is not None
            return replace(worker.limit, seconds=worker.unspent())
        rate = seconds_per_second(self.driver.ledger, worker.account.price_per_hour)
        missing = tuple(self._missing(attempt))
        per_row = None if loaded.seconds_per_row is None else loaded.seconds_per_row / rate
        cost = _Timed(self._rows_of(missing[0]).splits, per_row, loaded.seconds_per_validation_row / rate)
        limit = self.driver.time_limit(replace(attempt.cohort, trials=missing), cost)
        return replace(limit, seconds=min(limit.seconds * rate, self._most(worker, limit.method)))

    # Money

    def _most(self, worker: _Worker, method: str | None) -> float:
        """What a worker may spend at most from now on, in its own seconds, so that all together keep to the budget."""
        if not self.limited:
            return float("inf")
        ledger = self.driver.ledger
        if self.pays_waiting:
            left = clock_seconds_left(ledger, [one.account.price_per_hour for one in self._workers])
            return max(0.0, left - closing_seconds())
        busy = [one for one in self._workers if one is not worker and one.attempt is not None and one.limit is not None]
        granted = sum(
            (one.unspent() + closing_seconds()) / seconds_per_second(ledger, one.account.price_per_hour)
            for one in busy
            if one.limit is not None and one.limit.method == method
        )
        # cohorts that are about to begin share what nobody was granted: the first one does not take it all
        begin = sum(self._account_of(attempt) == method for attempt in self._waiting)
        together = 1 + min(begin, len(self._workers) - 1 - len(busy))
        rate = seconds_per_second(ledger, worker.account.price_per_hour)
        return max(0.0, (ledger.remaining(method) - granted) / together * rate - closing_seconds())

    def _end_unpaid(self) -> None:
        """Ends what has no time limit yet when the money is gone: it waits for a machine, a process starts for it, it
        loads. Nothing is lost with it."""
        if not self.limited:
            return
        prices = [worker.account.price_per_hour for worker in self._workers]
        loading = [worker for worker in self._workers if worker.attempt is not None and worker.attempt.loading]
        for attempt in [*self._waiting, *(worker.attempt for worker in loading if worker.attempt is not None)]:
            left = self.driver.ledger.remaining(self._account_of(attempt))
            if self.pays_waiting:
                left = clock_seconds_left(self.driver.ledger, prices)
            if left > closing_seconds():
                continue
            if attempt in self._waiting:
                self._waiting.remove(attempt)
            for worker in [worker for worker in loading if worker.attempt is attempt]:
                self._dismiss(worker)
            if not attempt.measures:
                self._fail(attempt, GiveUp("budget", _UNPAID), self.cluster.slot_price)

    def _account_of(self, attempt: Attempt) -> str | None:
        """Whose money an attempt spends; None is the study's."""
        return attempt.cohort.trials[0].variant.group if self.driver.ledger.per == "method" else None

    # What a worker says

    def _take(self) -> Any:
        """The next event. One request for it is always under way, so that nothing is lost between two."""
        try:
            event = self.ray.get(self._next_event)
        except self.ray.exceptions.RayActorError as error:
            raise UserError(
                f"the study's queue of events is lost: {str(error).strip().splitlines()[0]}",
                hint="Run the same command again: it goes on from the checkpoints.",
            ) from error
        self._next_event = self._events.actor.get.remote(None)
        return event

    def _read_all(self) -> None:
        """Everything that has been said until now: the queue keeps its order, so a mark comes after it."""
        mark = uuid.uuid4().hex
        self._events.put(mark)
        while (event := self._take()) != mark:
            self._read(event)

    def _read(self, event: Event) -> None:
        for worker in self._workers:
            if worker.attempt is not None and worker.attempt.identifier == event.job:
                break
        else:
            return  # of an attempt that was given up: what it says does not count any more
        worker.account.report(event.spent)
        if isinstance(event, Recorded):
            worker.account.keep()
            if not self.driver.has(event.trial):
                self.driver.leave(worker.attempt.trial(event.trial), event.record, event.predictions)
        elif isinstance(event, Question):
            trial = worker.attempt.trial(event.trial)
            event.answers.put(self._prune is not None and self._prune(trial, event.step, event.loss))
        elif isinstance(event, Report):
            if event.saved:
                self._saved(worker)
            worker.attempt.show(self.display, event)

    def _saved(self, worker: _Worker) -> None:
        assert worker.attempt is not None
        worker.account.keep()
        worker.attempt.saved = True

    # How a worker ends

    def _dismiss(self, worker: _Worker, lost: bool = False) -> None:
        self.ray.kill(worker.actor, no_restart=True)
        self._workers.remove(worker)
        worker.account.close(lost)

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """A call ended without an answer: a machine or a process was lost, memory ran out, or there is a bug."""
        attempt = worker.attempt
        self._dismiss(worker, lost=True)
        self._nodes = self.cluster.nodes()
        if attempt is not None:
            self._follow(attempt, worker, error)
        elif worker.node is None:
            check_import(error)
            self._failed_starts += 1
            if self._failed_starts > LOSSES:
                raise UserError(
                    f"no worker can be started on the cluster: {str(error).strip().splitlines()[-1]}",
                    hint="ray status; the machine's own words are in /tmp/ray/session_latest/logs",
                ) from error

    def _follow(self, attempt: Attempt, worker: _Worker, error: Exception) -> None:
        """Tries a lost attempt again, or gives up its trials."""
        if not attempt.measures and not self._missing(attempt):
            return
        lives = worker.node is None or worker.node.identifier in self._nodes
        decision = next_attempts(attempt, error, self.ray.exceptions, lives)
        if isinstance(decision, GiveUp):
            if attempt.measures:
                raise RuntimeError(decision.message) from error
            self._fail(attempt, decision, worker.account.price_per_hour)
            self._checkpoints(attempt.cohort.name).clear()
            return
        if len(decision) > 1:
            self._part_checkpoint(attempt.cohort)
        again = [one for one in decision if one.measures or self._missing(one)]
        self._waiting.extendleft(reversed(again))  # first: what has begun should end

    def _fail(self, attempt: Attempt, why: GiveUp, price_per_hour: float) -> None:
        """Records of trials that were given up."""
        for trial in self._missing(attempt):
            pieces = [piece for piece in self.driver.ledger.pieces()[0] if piece.trial == trial.identifier]
            seconds, dollars = sum(piece.seconds for piece in pieces), sum(piece.dollars for piece in pieces)
            cost = Cost(seconds=seconds, dollars=dollars, price_per_hour=price_per_hour)
            self.driver.leave(trial, failed_record(trial, why.kind, why.message, cost))

    def _missing(self, attempt: Attempt) -> list[Trial]:
        return [trial for trial in attempt.cohort.trials if not self.driver.has(trial.identifier)]

    def _checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.driver.folder(cohort) / "checkpoint")

    def _part_checkpoint(self, cohort: Cohort) -> None:
        """Each trial's part of a cohort's checkpoint becomes a checkpoint of its own."""
        files = self._checkpoints(cohort.name).files()
        for trial in cohort.trials:
            own = {name: content for name, content in files.items() if name.startswith(f"{trial.identifier}.")}
            if own:
                self._checkpoints(trial.identifier).put(own)

    def _rows_of(self, trial: Trial) -> _Rows:
        """The rows of a trial's task and scale, put into Ray's object store once; the driver owns them, so that no machine
        takes them with it when it is lost."""
        key = (trial.task_index, trial.scale, trial.draw)
        if key not in self._rows:
            task = self.tasks[trial.task_index]
            splits = task.splits(trial.scale, self.settings.data_seed, self.settings.evaluation.rows, trial.draw)
            self._rows[key] = _Rows(splits, self.ray.put(packed_splits(splits)))
        return self._rows[key]
