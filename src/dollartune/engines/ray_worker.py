"""What runs on a machine of a Ray cluster: an actor that does one cohort after the other, with the worker of one process.

It writes checkpoints and adapters into the study's folder, which all machines share. Everything else it leaves with the
driver or asks of it, and waits for each answer: a record that it has left is written when it goes on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.budget.ledger import Ledger
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.trial_context import ContextCache
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.record import read_record

if TYPE_CHECKING:
    from dollartune.budget.journal import Piece
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
    from dollartune.engines.display import TrialInTraining
    from dollartune.evaluate.evaluation import Prediction
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.tasks.base import Splits, Task
    from dollartune.train.progress import Validation
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial

REPORT_SECONDS = 1.0
"""Least time between two reports of how far a training is: as often as a person looks."""


@dataclass(frozen=True)
class Job:
    """A cohort for a worker: the argument of its call. The rows come beside it, from Ray's object store."""

    identifier: str
    cohort: Cohort
    settings: StudySettings
    """The study's, with smaller micro-batches after a machine's memory ran out."""
    measures: bool
    """Only measure what the cohort's first trial costs."""
    folder: Path
    """Of the study's trials: checkpoints and adapters are written straight into it."""
    shared: tuple[Path, ...]
    """What must be seen under the same path on every machine."""
    recorded: frozenset[str]
    """Trials of the cohort that have their record: they are not done again."""
    earlier: Sequence[Piece]
    """What earlier workers have booked for the others."""


class RemoteDriver(Display):
    """The driver as a worker sees it during one job (`engines.base.Driver`), called through a channel.

    Args:
        node: Ray's name of this machine.
    """

    def __init__(self, job: Job, channel: Any, node: str) -> None:
        self.job, self.channel, self._recorded = job, channel, set(job.recorded)
        self._booked, self._reported = 0, -math.inf
        missing = next((path for path in job.shared if not path.exists()), None)
        price_per_hour, limit_seconds = self._call("begin", node, missing)
        budget = job.settings.budget
        # loading is charged to the cohort's methods here; the driver's ledger divides it among all
        methods = tuple({trial.variant.group for trial in job.cohort.trials})
        self.ledger = Ledger(
            price_per_hour, limit_seconds, per="method" if budget is not None and budget.per == "method" else "study",
            methods=methods, heartbeat_seconds=0, earlier=job.earlier,
        )  # fmt: skip

    def _call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of `engines.ray.RayEngine`."""
        answer = self.channel.call.remote(self.job.identifier, method, *arguments)
        # Not with `ray.get`: while that waits, Ray gives this worker's part of the machine to another one.
        answer = answer.future().result()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def book(self, saved: bool = False) -> None:
        """Tells what was spent since the last time. `saved`: a checkpoint has just been written."""
        with self.ledger.lock:  # which puts off an alarm: between the two it would lose what was spent
            spent, failed = self.ledger.settled(self._booked)
            self._booked += len(spent)
            self._call("book", spent, failed, saved)

    def paying(self) -> str:
        self.book()  # else a worker that goes on after a loss could not know who paid
        return self.ledger.innermost()

    # Its records and limits

    def folder(self, trial: str) -> Path:
        return self.job.folder / trial

    def checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.folder(cohort) / "checkpoint", saved=lambda: self.book(saved=True))

    def has(self, trial: str) -> bool:
        return trial in self._recorded

    def read(self, trial: str) -> TrialRecord:
        path = self.folder(trial) / "record.json"
        return read_record(path.read_bytes(), str(path))

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Prediction] = ()) -> None:
        self.book()
        self._call("leave", trial, record, tuple(predictions))
        self._recorded.add(trial.identifier)

    def time_limit(self, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        self.book()
        missing = tuple(trial for trial in cohort.trials if not self.has(trial.identifier))
        limit: TimeLimit = self._call("time_limit", replace(cohort, trials=missing), costs)
        if not math.isinf(limit.seconds):
            # A ledger's limit counts from its beginning, and loading has been spent by now.
            self.ledger.limit_seconds = self.ledger.spent_seconds(limit.method) + limit.seconds
        return limit

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        return bool(self._call("prune", trial, step, loss))

    # Its display

    def note(self, text: str) -> None:
        self._call("show", "note", text)

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            self._call("show", "training", trials, states)

    def validated(self, trial: Trial, validation: Validation) -> None:
        self._call("show", "validated", trial, validation)

    def evaluating(self, trial: Trial) -> None:
        self._call("show", "evaluating", trial)


class RemoteContexts(ContextCache):
    """Makes trial contexts of the rows that come with a job."""

    splits: Splits

    def _splits(self, trial: Trial, task: Task) -> Splits:
        return self.splits


class RayWorker:
    """The actor. One call at a time, in its main thread: only there can a deadline interrupt what runs.

    Args:
        channel: the actor through which the driver is called.
        folder: the driver's, from which relative paths in methods count; where there are such, a job's `shared` has them.
        threads: processor cores of its part of the machine.
        gpus: GPUs of it.
    """

    def __init__(
        self, settings: StudySettings, tasks: Sequence[Task], places: int, channel: Any, folder: Path, threads: int,
        gpus: float,
    ) -> None:  # fmt: skip
        import torch

        with suppress(OSError):  # it need not be here: all other paths are whole
            os.chdir(folder)
        # as many threads and as much GPU memory as it was given, so that workers side by side do not starve
        torch.set_num_threads(threads)
        if 0 < gpus < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpus)
        self.channel, self.contexts = channel, RemoteContexts(settings, tasks, places)

    def run(self, job: Job, splits: Splits) -> TrialCost | None:
        """Does a cohort; what its first trial costs, where only that is asked for."""
        import ray

        self.contexts.splits = splits
        driver = RemoteDriver(job, self.channel, ray.get_runtime_context().get_node_id())
        worker = CohortWorker(job.settings, self.contexts, driver, driver)
        try:
            # every second of a job is booked: those between loading, tuning and evaluating as `other`
            with driver.ledger.book("other"):
                if job.measures:
                    return worker.measure(job.cohort.trials[0])
                worker.run(job.cohort)
        finally:
            driver.book()
        return None
