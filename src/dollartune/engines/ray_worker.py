"""What runs on a machine of a Ray cluster: one cohort, with the same worker that runs it in one process.

The machine has no part of the study's folder. Its worker finds a sink in a temporary folder, and whatever is left there
(records, adapters, checkpoints) goes to the driver through the mailroom; a ledger in memory, whose state goes with every
message; backbones and rows from Ray's object store.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dollartune.backbones.loading import Backbone
from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, Pruning, Timed, TimeLimit
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.payload import unpack_files
from dollartune.engines.ray_mailroom import Asks, Began, Doubts, Left, Message, Saved, Seen, Terms, Works
from dollartune.engines.remote_account import Spent
from dollartune.engines.trial_context import ContextCache
from dollartune.planner.trial_cost import TrialCost
from dollartune.tasks.base import Splits, Task
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState
from dollartune.trials.record import Cost, TrialRecord
from dollartune.trials.trial import Trial


@dataclass(frozen=True)
class Shipment:
    """What all machines need of a study."""

    session: str
    """Name of the run of the study; machines keep its backbones under it."""
    settings: StudySettings
    places: int
    """Places in each input that stay free for virtual tokens."""
    tasks: tuple[Task, ...]
    """Without rows."""
    limited: bool
    """Whether there is a budget."""
    per_method: bool
    cpus: float
    gpus: float
    """Of one cohort."""
    checkpoint_seconds: float
    """Least time between two checkpoints."""
    report_seconds: float
    """Between two reports."""


@dataclass(frozen=True)
class Goods:
    """Rows and backbone of a cohort: references into Ray's object store, fetched by a machine that does not have them."""

    splits: Any
    files: Mapping[str, Any]
    """File name -> content; none for an embedded backbone."""
    revision: str | None
    """The backbone's commit on the hub."""


@dataclass(frozen=True)
class Job:
    """One attempt at a cohort."""

    attempt: str
    cohort: Cohort
    training: TrainingSettings
    """The study's, or with smaller micro-batches after the machine's memory ran out."""
    goods: Goods
    recorded: frozenset[str] = frozenset()
    """Trials of the cohort that have their record."""
    checkpoint: Mapping[str, bytes] = field(default_factory=dict)
    """Files of the cohort's newest checkpoint."""
    measures: bool = False
    """Only measure what the cohort's first trial costs."""
    prunes: bool = False
    """Ask the driver after each validation whether a trial should go on."""


class NodeWorkshop(ContextCache):
    """Makes workbenches of what the driver has sent."""

    def __init__(self, shipment: Shipment) -> None:
        self.folder = node_folder(shipment.session)
        self.every_seconds = shipment.checkpoint_seconds
        self.goods: Goods | None = None
        """Of the cohort that is being done."""
        super().__init__(shipment.settings, shipment.tasks, shipment.places)

    def receive(self, cohort: Cohort, goods: Goods) -> None:
        """Knows from now on where the things for a cohort are. They are fetched when its context is made."""
        index = cohort.trials[0].backbone_index
        self.goods = goods
        if goods.files:
            wanted = list(self.settings.backbones)
            wanted[index] = wanted[index].model_copy(update={"name": str(self.folder / str(index))})
            self.settings = self.settings.model_copy(update={"backbones": tuple(wanted)})

    def _splits(self, trial: Trial, task: Task) -> Splits:
        assert self.goods is not None
        found: Splits = fetched(self.goods.splits)
        return found

    def _backbone(self, trial: Trial, task: Task) -> Backbone:
        assert self.goods is not None
        folder = self.folder / str(trial.backbone_index)
        if self.goods.files and not folder.is_dir():
            unpack_files({name: fetched(content) for name, content in self.goods.files.items()}, folder)
        backbone = super()._backbone(trial, task)
        backbone.revision = backbone.revision or self.goods.revision
        return backbone


def node_folder(session: str) -> Path:
    """Where a machine keeps what it was sent for a run of a study."""
    return Path(tempfile.gettempdir()) / f"dollartune-{session}"


def clean(session: str) -> None:
    """Removes that, when the study is over."""
    shutil.rmtree(node_folder(session), ignore_errors=True)


def fetched(reference: Any) -> Any:
    """The object behind a reference. While a task waits in `ray.get`, Ray gives its part of the machine to another."""
    return reference.future().result()


class Line:
    """An attempt's line to the driver.

    Args:
        mailroom: the actor.
        ledger: this machine's own; the driver may lower its limit.
    """

    def __init__(self, attempt: str, mailroom: Any, ledger: Ledger) -> None:
        self.attempt, self.mailroom, self.ledger = attempt, mailroom, ledger

    def spent(self) -> Spent:
        return Spent.of(self.ledger)

    def send(self, message: Message) -> None:
        """Brings a message, and takes over what the driver has cut."""
        limit = fetched(self.mailroom.bring.remote(message))
        if limit is not None:
            self.ledger.limit_seconds = limit

    def ask(self, message: Message) -> Any:
        """Asks the driver, and waits."""
        return fetched(self.mailroom.ask.remote(message))

    def time_limit(self, cohort: Cohort, context: Timed) -> TimeLimit:
        """See `engines.TimeLimits`."""
        trials = tuple(trial.identifier for trial in cohort.trials)
        question = Asks(self.attempt, self.spent(), trials, context.seconds_per_row, context.seconds_per_validation_row)
        answer = self.ask(question)
        if isinstance(answer, str):
            raise BudgetSpent(answer)
        assert isinstance(answer, TimeLimit)
        if not math.isinf(answer.seconds):
            self.ledger.limit_seconds = self.ledger.spent_seconds(answer.method) + answer.seconds
        return answer

    def prune(self, trial: Trial, step: int, loss: float) -> bool:
        """See `engines.Pruning`."""
        return bool(self.ask(Doubts(self.attempt, self.spent(), trial.identifier, step, loss)))


class Outbox:
    """The worker's sink: what is left here goes to the driver."""

    def __init__(self, root: Path, line: Line, recorded: Iterable[str]) -> None:
        self.root, self.line, self.recorded = root, line, set(recorded)

    def folder(self, trial: str) -> Path:
        return self.root / trial

    def has(self, trial: str) -> bool:
        return trial in self.recorded

    def leave(self, trial: Trial, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        name = trial.identifier
        adapter = {path.name: path.read_bytes() for path in sorted((self.folder(name) / "adapter").glob("*"))}
        self.line.send(Left(self.line.attempt, self.line.spent(), name, record, tuple(predictions), adapter))
        self.recorded.add(name)


class SentCheckpoints(Checkpoints):
    """Checkpoints that go to the driver as soon as they are written; sending counts as writing."""

    def __init__(self, folder: Path, cohort: str, line: Line, every_seconds: float) -> None:
        super().__init__(folder, every_seconds)
        self.cohort, self.line = cohort, line

    def save(self, trials: Sequence[TrialState]) -> None:
        started = time.monotonic()
        super().save(trials)
        self.line.send(Saved(self.line.attempt, self.line.spent(), self.cohort, self.files()))
        self.took(started)

    def clear(self) -> None:
        super().clear()
        self.line.send(Saved(self.line.attempt, self.line.spent(), self.cohort, {}))


class Reporter(Display):
    """Says at regular times how far the work is and what it has spent, from a thread of its own."""

    def __init__(self, line: Line, every_seconds: float) -> None:
        self.line, self.every_seconds = line, every_seconds
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
        while not self._stop.wait(self.every_seconds):
            states = tuple(_seen(state) for state in self.states)
            self.line.send(Works(self.line.attempt, self.line.spent(), states, self.now_evaluating))


def _seen(state: TrialState) -> Seen:
    progress = copy.copy(state.progress)
    progress.history = list(progress.history)
    return Seen(state.name, state.done, state.epoch, state.total_steps, progress)


class NodeWorker(CohortWorker):
    """The worker of one process, with checkpoints that are sent and costs that count earlier attempts."""

    def __init__(
        self,
        settings: StudySettings,
        contexts: NodeWorkshop,
        line: Line,
        sink: Outbox,
        display: Reporter,
        terms: Terms,
    ) -> None:
        super().__init__(settings, contexts, line.ledger, sink, display)
        self.line, self.terms = line, terms
        self.every_seconds = contexts.every_seconds

    def checkpoints(self, cohort: Cohort) -> Checkpoints:
        return SentCheckpoints(self.sink.folder(cohort.name) / "checkpoint", cohort.name, self.line, self.every_seconds)

    def _cost(self, trial: Trial) -> Cost:
        cost = super()._cost(trial)
        seconds, dollars = self.terms.spent_before.get(trial.identifier, (0.0, 0.0))
        return cost.model_copy(update={"seconds": cost.seconds + seconds, "dollars": cost.dollars + dollars})


_workshops: dict[str, NodeWorkshop] = {}
"""What this process has loaded, by run of a study: Ray uses a process for many cohorts in turn."""


def _workshop(shipment: Shipment) -> NodeWorkshop:
    if shipment.session not in _workshops:
        for old in list(_workshops):
            _workshops.pop(old).release()
        _workshops[shipment.session] = NodeWorkshop(shipment)
    return _workshops[shipment.session]


def do(job: Job, shipment: Shipment, mailroom: Any) -> tuple[Spent, TrialCost | None]:
    """Does one cohort, as a Ray task.

    Returns:
        what it spent in all, and the trial_cost of the cohort's first trial, if that was asked for.
    """
    import ray

    _take_part_of_the_machine(shipment)
    ledger = Ledger(
        limit_seconds=math.inf if shipment.limited else None,
        per="method" if shipment.per_method else "study",
        heartbeat_seconds=0,
    )
    line = Line(job.attempt, mailroom, ledger)
    with tempfile.TemporaryDirectory(prefix="dollartune-") as root, ledger.book("other"):
        node = ray.get_runtime_context().get_node_id()
        terms = line.ask(Began(job.attempt, line.spent(), node, os.getpid()))
        assert isinstance(terms, Terms)
        ledger.price_per_hour = terms.price_per_hour
        sink = Outbox(Path(root), line, job.recorded)
        with Reporter(line, shipment.report_seconds) as reporter:
            contexts = _workshop(shipment)
            contexts.receive(job.cohort, job.goods)
            settings = contexts.settings.model_copy(update={"training": job.training})
            worker = NodeWorker(settings, contexts, line, sink, reporter, terms)
            trial_cost = None
            if job.measures:
                trial_cost = worker.measure(job.cohort.trials[0])
            else:
                if job.checkpoint:
                    Checkpoints(sink.folder(job.cohort.name) / "checkpoint").put(job.checkpoint)
                prune: Pruning | None = line.prune if job.prunes else None
                worker.run(job.cohort, line.time_limit, prune)
    return line.spent(), trial_cost


def _take_part_of_the_machine(shipment: Shipment) -> None:
    """As many threads and as much GPU memory as the cohort was given, so that cohorts side by side do not starve."""
    import torch

    torch.set_num_threads(max(1, int(shipment.cpus)))
    if 0 < shipment.gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(shipment.gpus)
