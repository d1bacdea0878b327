"""What runs on a machine of a Ray cluster: an actor that does one cohort after the other, with the worker of one process.

    driver                                     RayWorker (an actor; Ray restarts it when it is lost)
    run(job)  ---------- call ------------>    begin -> load -> time limit -> train, evaluate, record
              <--- Channel (an actor) ---->    records, seconds spent, progress; questions and their answers

It writes checkpoints and adapters into the study's folder, which all machines share. Records go to the driver, who adds
what the scheduler knows and writes them; its time goes with every message, from a ledger in memory.

Ray may repeat a call: what is recorded is not done again, the rest goes on from the checkpoint, and what the attempt may
spend is asked when it begins, so that a repeated one does not get the money that the first one has spent.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.ledger import Ledger
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.payload import (
    Began,
    Job,
    Loaded,
    Message,
    Payload,
    Recorded,
    Report,
    Terms,
    TrialView,
    Validated,
)
from dollartune.engines.trial_context import ContextCache
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.record import read_record

if TYPE_CHECKING:
    from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
    from dollartune.evaluate.evaluation import Prediction
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.tasks.base import Splits, Task
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


class Connection:
    """What the worker of one process needs, for one attempt: where records go, who limits it.

    Args:
        channel: the actor on the driver's machine through which both talk.
    """

    def __init__(self, job: Job, payload: Payload, channel: Any, node: str) -> None:
        self.job, self.payload, self.channel = job, payload, channel
        self.attempt = uuid.uuid4().hex[:12]
        self.ledger = Ledger(
            per="method" if payload.per_method else "study",
            # loading is charged to the cohort's methods here; the driver's ledger divides it among all
            methods=tuple({trial.variant.group for trial in job.cohort.trials}) if payload.per_method else (),
            clock=payload.clock,
            heartbeat_seconds=0,
        )
        self._reported, self._lock = 0, threading.Lock()
        missing = next((path for path in payload.shared if not path.exists()), None)
        self.terms: Terms = self.ask(Began, node, missing)
        self.ledger.price_per_hour, self.ledger.limit_seconds = self.terms.price_per_hour, self.terms.limit_seconds
        self.recorded = set(self.terms.recorded)

    def say(self, kind: Callable[..., Message], *values: Any, **named: Any) -> None:
        """Says something, and waits until it has arrived."""
        self._call(self.channel.say, kind, *values, **named)

    def ask(self, kind: Callable[..., Message], *values: Any) -> Any:
        """Says something, and waits for the driver's answer."""
        return self._call(self.channel.ask, kind, *values)

    def _call(self, method: Any, kind: Callable[..., Message], *values: Any, **named: Any) -> Any:
        with self._lock:  # the reporter speaks from a thread of its own
            spent, failed = self.ledger.settled(self._reported)
            self._reported += len(spent)
        message = kind(self.job.identifier, self.attempt, spent, failed, *values, **named)
        # not with `ray.get`: while that waits, Ray gives this worker's part of the machine to another one
        return method.remote(message).future().result()

    # The worker's record sink

    def folder(self, trial: str) -> Path:
        return self.payload.folder / trial

    def has(self, trial: str) -> bool:
        return trial in self.recorded

    def read(self, trial: str) -> TrialRecord:
        path = self.folder(trial) / "record.json"  # in the study's folder, which all machines share
        return read_record(path.read_bytes(), str(path))

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Prediction] = ()) -> None:
        self.say(Recorded, trial.identifier, record, tuple(predictions))
        self.recorded.add(trial.identifier)

    # Its limits

    def time_limit(self, cohort: Cohort, cost: EvaluationCost) -> TimeLimit:
        """See `engines.base.TimeLimits`."""
        names = tuple(trial.identifier for trial in cohort.trials)
        answer: TimeLimit | BudgetSpent
        answer = self.ask(Loaded, names, cost.seconds_per_row, cost.seconds_per_validation_row)
        if isinstance(answer, BudgetSpent):
            raise answer
        if not math.isinf(answer.seconds):
            self.ledger.limit_seconds = self.ledger.spent_seconds(answer.method) + answer.seconds
        return answer

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """See `engines.base.Pruning`."""
        return bool(self.ask(Validated, trial.identifier, step, loss))


class Reporter(Display):
    """Says at regular times how far the work is and what it has spent, from a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.states: tuple[TrialState, ...] = ()
        self.now_evaluating: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, name="dollartune-report", daemon=True)

    def training(self, trials: Sequence[Trial], states: Sequence[Any]) -> None:
        self.states, self.now_evaluating = tuple(states), None

    def evaluating(self, trial: Trial) -> None:
        self.now_evaluating = trial.identifier

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._stop.wait(self.connection.payload.report_seconds):
            self.connection.say(Report, tuple(TrialView.of(state) for state in self.states), self.now_evaluating)


class RemoteCohortWorker(CohortWorker):
    """The worker of one process, with checkpoints that are reported and costs that count earlier attempts."""

    def __init__(self, contexts: ContextCache, connection: Connection, display: Display) -> None:
        settings = contexts.settings.model_copy(update={"training": connection.job.training})
        before = connection.terms.spent_before
        super().__init__(settings, contexts, connection.ledger, connection, display, before)
        self.connection = connection

    def checkpoints(self, cohort: Cohort) -> Checkpoints:
        folder = self.sink.folder(cohort.name) / "checkpoint"
        seconds = self.connection.payload.checkpoint_seconds
        return Checkpoints(folder, seconds, saved=lambda: self.connection.say(Report, saved=True))


class RemoteContexts(ContextCache):
    """Makes trial contexts of the rows that the driver has put into the object store."""

    splits: Any = None
    """Reference to the rows of the cohort that is being done."""

    def _splits(self, trial: Trial, task: Task) -> Splits:
        rows: Splits = self.splits.future().result()
        return rows


class RayWorker:
    """The actor. One call at a time, in its main thread: only there can a deadline interrupt what runs.

    Args:
        channel: the actor on the driver's machine through which both talk.
        threads: processor cores of its part of the machine.
        gpus: GPUs of it.
    """

    def __init__(self, payload: Payload, channel: Any, threads: int, gpus: float) -> None:
        import torch

        # as many threads and as much GPU memory as it was given, so that workers side by side do not starve
        torch.set_num_threads(threads)
        if 0 < gpus < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpus)
        self.payload, self.channel = payload, channel
        self._contexts = RemoteContexts(payload.settings, payload.tasks, payload.places)

    def run(self, job: Job) -> TrialCost | None:
        """Does a cohort; what its first trial costs, where only that is asked for."""
        import ray

        self._contexts.splits = job.splits
        connection = Connection(job, self.payload, self.channel, ray.get_runtime_context().get_node_id())
        try:
            # every second of a call is booked: those between loading, tuning and evaluating as `other`
            with connection.ledger.book("other"), Reporter(connection) as reporter:
                worker = RemoteCohortWorker(self._contexts, connection, reporter)
                if job.measures:
                    return worker.measure(job.cohort.trials[0])
                worker.run(job.cohort, connection.time_limit, connection.prune if job.prunes else None)
        finally:
            connection.say(Report)
        return None
