"""What runs on a machine of a Ray cluster: an actor that does one cohort after the other, with the worker of one process.

    driver                     call                       RayWorker (an actor)
    start  ------------------------------------------->   which machine, which process; does it see the study's folder?
    load   ------------------------------------------->   backbone, rows, encodings; what evaluating takes
    run    ------------------------------------------->   train, evaluate, record
           <-------- ray.util.queue: events -----------   records, seconds spent, progress, questions

It writes checkpoints and adapters into the study's folder, which all machines share. Records go to the driver, who adds
what the scheduler knows and writes them; its time goes with every event, from a ledger in memory.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit, evaluation_seconds
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.payload import Ended, Event, Job, Loaded, Payload, Question, Recorded, Report, Seen, Started
from dollartune.engines.trial_context import ContextCache
from dollartune.engines.worker_account import Spent
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.record import read_record

if TYPE_CHECKING:
    from dollartune.tasks.base import Splits, Task
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import Cost, TrialRecord
    from dollartune.trials.trial import Trial


class Connection:
    """What the worker of one process needs, for one attempt: where records go, who shows progress, who limits it.

    Args:
        events: Ray's queue on the driver's machine.
    """

    def __init__(self, job: Job, payload: Payload, ledger: Ledger, events: Any) -> None:
        self.job, self.payload, self.ledger, self.events = job, payload, ledger, events
        self.recorded = set(job.recorded)
        self._answers: Any = None

    def event(self, kind: Callable[..., Event], *values: Any, **named: Any) -> None:
        """Says something, and waits until it has arrived.

        Not with `ray.get`: while that waits, Ray gives this worker's part of the machine to another one.
        """
        said = kind(self.job.identifier, Spent.of(self.ledger), *values, **named)
        self.events.actor.put.remote(said, None).future().result()

    # The worker's record sink

    def folder(self, trial: str) -> Path:
        return self.payload.folder / trial

    def has(self, trial: str) -> bool:
        return trial in self.recorded

    def read(self, trial: str) -> TrialRecord:
        path = self.folder(trial) / "record.json"  # in the study's folder, which all machines share
        return read_record(path.read_bytes(), str(path))

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        self.event(Recorded, trial.identifier, record, tuple(predictions))
        self.recorded.add(trial.identifier)

    # Its limits

    def time_limits(self, limit: TimeLimit) -> Callable[[Cohort, EvaluationCost], TimeLimit]:
        """Divides what the driver has granted for the attempt, where its cohort has to be tried again in parts."""
        if not math.isinf(limit.seconds):
            self.ledger.limit_seconds = self.ledger.spent_seconds(limit.method) + limit.seconds

        def part(cohort: Cohort, context: EvaluationCost) -> TimeLimit:
            if math.isinf(limit.seconds):
                return limit
            missing = sum(not self.has(trial.identifier) for trial in self.job.cohort.trials)
            mine = sum(not self.has(trial.identifier) for trial in cohort.trials)
            seconds = self.ledger.remaining(limit.method) * mine / max(1, missing)
            needed = evaluation_seconds(cohort, context, self.payload.settings)
            if needed > seconds:
                raise BudgetSpent(
                    f"{max(0.0, seconds):.1f} s are left for this trial, and evaluating it takes about {needed:.1f} s."
                )
            return TimeLimit(seconds, limit.reserve, limit.method)

        return part

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """See `engines.base.Pruning`."""
        if self._answers is None:  # a process of Ray's own, only where a search asks
            from ray.util.queue import Queue

            self._answers = Queue(actor_options={"num_cpus": 0})
        self.event(Question, trial.identifier, step, loss, self._answers)
        return bool(self._answers.actor.get.remote(None).future().result())


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
            states = tuple(Seen.of(state) for state in self.states)
            self.connection.event(Report, states, self.now_evaluating)


class ReportedCheckpoints(Checkpoints):
    """Checkpoints in the study's folder, each of which is reported: telling the driver counts as writing."""

    def __init__(self, folder: Path, connection: Connection) -> None:
        super().__init__(folder, connection.payload.checkpoint_seconds)
        self.connection = connection

    def save(self, trials: Sequence[TrialState]) -> None:
        started = time.monotonic()
        super().save(trials)
        self.connection.event(Report, saved=True)
        self.took(started)


class RemoteCohortWorker(CohortWorker):
    """The worker of one process, with checkpoints that are reported and costs that count earlier attempts."""

    def __init__(self, contexts: ContextCache, connection: Connection, display: Display) -> None:
        settings = contexts.settings.model_copy(update={"training": connection.job.training})
        super().__init__(settings, contexts, connection.ledger, connection, display)
        self.connection = connection

    def checkpoints(self, cohort: Cohort) -> Checkpoints:
        return ReportedCheckpoints(self.sink.folder(cohort.name) / "checkpoint", self.connection)

    def _cost(self, trial: Trial) -> Cost:
        cost = super()._cost(trial)
        seconds, dollars = self.connection.job.spent_before.get(trial.identifier, (0.0, 0.0))
        return cost.model_copy(update={"seconds": cost.seconds + seconds, "dollars": cost.dollars + dollars})


class RemoteContexts(ContextCache):
    """Makes trial contexts of the rows that the driver has sent."""

    splits: Any = None
    """Reference to the rows of the cohort that is being done."""

    def _splits(self, trial: Trial, task: Task) -> Splits:
        rows: Splits = self.splits.future().result()
        return rows


class RayWorker:
    """The actor. One call at a time, in its main thread: only there can a deadline interrupt what runs.

    Args:
        events: Ray's queue on the driver's machine.
        threads: processor cores of its part of the machine.
        gpus: GPUs of it.
    """

    def __init__(self, payload: Payload, events: Any, threads: int, gpus: float) -> None:
        import torch

        # as many threads and as much GPU memory as it was given, so that workers side by side do not starve
        torch.set_num_threads(threads)
        if 0 < gpus < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpus)
        self.payload, self.events = payload, events
        self._contexts = RemoteContexts(payload.settings, payload.tasks, payload.places)
        self._connection: Connection | None = None

    def start(self) -> Started:
        """Says where it is."""
        import ray

        missing = next((path for path in self.payload.shared if not path.exists()), None)
        return Started(ray.get_runtime_context().get_node_id(), os.getpid(), missing)

    def load(self, job: Job) -> Loaded | None:
        """Loads what a cohort needs and begins its account; None where that fails: `run` meets the same and records it."""
        groups = tuple({trial.variant.group for trial in job.cohort.trials}) if self.payload.per_method else ()
        ledger = Ledger(
            price_per_hour=job.price_per_hour,
            limit_seconds=job.limit_seconds if self.payload.limited else None,
            per="method" if self.payload.per_method else "study",
            methods=groups,  # loading is charged to the cohort's methods here; the driver's ledger divides it among all
            clock=self.payload.clock,
            heartbeat_seconds=0,
        )
        self._connection = Connection(job, self.payload, ledger, self.events)
        self._contexts.splits = job.splits
        try:
            with self._worker() as worker:
                trial = job.cohort.trials[0]
                context = worker.baseline_rows(trial) if trial.answers_alone else worker.load(trial)
        except Exception:
            return None
        return Loaded(context.seconds_per_row, context.seconds_per_validation_row)

    def run(self, limit: TimeLimit) -> Ended:
        """Does the cohort that was loaded last."""
        connection = self._loaded()
        with self._worker() as worker:
            prune = connection.prune if connection.job.prunes else None
            worker.run(connection.job.cohort, connection.time_limits(limit), prune)
        return Ended(Spent.of(connection.ledger))

    def measure(self) -> Ended:
        """What the loaded cohort's first trial costs."""
        connection = self._loaded()
        try:
            with self._worker() as worker:
                cost = worker.measure(connection.job.cohort.trials[0])
        except BudgetSpent as error:
            return Ended(Spent.of(connection.ledger), unpaid=str(error))
        return Ended(Spent.of(connection.ledger), cost)

    @contextmanager
    def _worker(self) -> Any:
        connection = self._loaded()
        # every second of a call is booked: those between loading, tuning and evaluating as `other`
        with connection.ledger.book("other"), Reporter(connection) as reporter:
            yield RemoteCohortWorker(self._contexts, connection, reporter)

    def _loaded(self) -> Connection:
        assert self._connection is not None, "load comes first"
        return self._connection
