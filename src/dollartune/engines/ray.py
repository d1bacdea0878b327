"""The engine of a Ray cluster: one actor per worker, cohorts side by side, each worker on a part of a machine.

    driver                                                RayWorker (an actor)
    waiting cohorts  ----- run(job, rows), Ray's call --->  load, train, evaluate one cohort
    begin, book, time_limit, prune, leave, show    <------  calls of the driver, through an actor (Channel)

Store and ledger are written by this process alone. A cohort whose worker is lost goes to another one, on any machine with
room. That is safe: a worker waits for the answer to each of its calls, so what it goes on from is recorded here or lies in
the study's folder; what is recorded is never done again, and the rest begins at the checkpoint. What was spent since then is
booked as `failure`. A worker that was only thought lost is not answered any more, and so stops at its next call.
"""

from __future__ import annotations

import math
import re
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.locate import from_anywhere
from dollartune.budget.deadline import BudgetSpent, closing_seconds
from dollartune.engines.base import Cohort, Driver, EvaluationCost, TimeLimit
from dollartune.engines.ray_worker import Job, RayWorker
from dollartune.engines.record_writer import RecordWriter
from dollartune.engines.worker_account import WorkerAccount
from dollartune.errors import ProcessLost, UserError
from dollartune.train.out_of_memory import halved_after_out_of_memory
from dollartune.trials.trial import variants

if TYPE_CHECKING:
    from dollartune.budget.journal import Piece
    from dollartune.config import StudySettings
    from dollartune.engines.display import Display
    from dollartune.engines.ray_cluster import Cluster
    from dollartune.evaluate.evaluation import Prediction
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.tasks.base import Task
    from dollartune.train.settings import TrainingSettings
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial

LOOK_SECONDS = 0.5
"""How often the driver looks at the machines: a look is a call of Ray's, which takes some milliseconds."""
ALONE_SECONDS = 600.0
"""How long a study waits for a machine when it has lost all: a cluster of spot machines is refilled in minutes."""
LOSSES = 3
"""Times that a cohort is begun again without having got further: spot machines come and go, but one that takes each machine
down must end somewhere."""


@dataclass(eq=False)
class _Run:
    """A cohort that waits for a worker or is at one."""

    cohort: Cohort
    training: TrainingSettings
    measures: bool = False
    result: TrialCost | Exception | None = None
    """What was measured, or why it came to nothing."""
    losses: int = 0
    """Workers lost since its last checkpoint or record."""
    recorded: set[str] = field(default_factory=set)
    """Trials that have left a record; one that is to be evaluated has that of its search alone."""
    shown: dict[str, int] = field(default_factory=dict)
    """Trial -> step of the last validation that the display was told: after a loss those since the checkpoint come again."""
    # At a worker: the actor, and Ray's reference to what its call will return
    worker: Any = None
    call: Any = None
    account: WorkerAccount | None = None
    """None until it has begun: only then its machine and price are known."""

    @property
    def method(self) -> str:
        """Whose money it spends, where each method has its own."""
        return self.cohort.trials[0].variant.group

    @property
    def missing(self) -> list[Trial]:
        """Trials without their record."""
        return [trial for trial in self.cohort.trials if trial.identifier not in self.recorded]


class RayEngine:
    """Runs cohorts on the machines of a Ray cluster. Its arguments are those of `select_engine.engine_for`."""

    def __init__(
        self, driver: Driver, settings: StudySettings, tasks: Sequence[Task], places: int, cluster: Cluster,
        display: Display,
    ) -> None:  # fmt: skip
        self.driver, self.settings, self.tasks, self.places = driver, with_whole_paths(settings), tasks, places
        self.cluster, self.display, self.ray, self.clock = cluster, display, cluster.ray, driver.ledger.clock
        self.device = "cuda" if cluster.gpus else "cpu"
        self.writer = RecordWriter(settings, driver, places)
        self._nodes = cluster.nodes()
        self._looked = self.clock()
        self._channel: Any = None
        self._rows: dict[tuple[int, int | None, int | None], Any] = {}
        self._waiting: deque[_Run] = deque()
        self._running: dict[str, _Run] = {}
        """By job: each call of a worker is one."""
        self._idle: list[Any] = []
        """Actors without work; their backbones stay loaded."""

    @property
    def slots(self) -> int:
        return sum(node.slots for node in self._nodes.values())

    def run(self, cohorts: Iterable[Cohort]) -> None:
        runs = [_Run(cohort, self.settings.training) for cohort in cohorts]
        for run in runs:
            if run.cohort.purpose != "evaluate":
                run.recorded.update(t.identifier for t in run.cohort.trials if self.driver.has(t.identifier))
        self._work(runs)

    def measure(self, trial: Trial) -> TrialCost:
        run = _Run(Cohort((trial,)), self.settings.training, measures=True)
        self._work([run])
        if isinstance(run.result, Exception):
            raise run.result
        assert run.result is not None
        return run.result

    def close(self) -> None:
        self._end_idle()
        if self._channel is not None:
            self.ray.kill(self._channel)
            self._marker.unlink(missing_ok=True)
        self.cluster.close()

    # The driver's loop

    def _work(self, runs: Iterable[_Run]) -> None:
        if self._channel is None:
            self._open()
        self._waiting.extend(runs)
        self._seen_alive = self.clock()  # between two calls nobody has looked
        with self.driver.ledger.elsewhere():
            try:
                while self._waiting or self._running:
                    self._look()
                    self._assign()
                    self._listen()
            finally:  # Ctrl-C, an error: records and checkpoints are here, the time is booked
                self._waiting.clear()
                for job in list(self._running):
                    self._leave_worker(job, lost=True)

    def _open(self) -> None:
        self._channel = self.cluster.channel()
        self._next_call = self._channel.next.remote()
        self._folder = self.driver.folder("").resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        # A worker that sees it shares this disk, and may write checkpoints and adapters where they belong. It is of this
        # run: a folder of the same name on another machine's disk does not have it
        self._marker = self._folder.parent / f".shared-{uuid.uuid4().hex}"
        self._marker.touch()
        self._shared = (self._marker, *read_by_training(self.settings))
        tasks = [task.without_rows() for task in self.tasks]
        self._setup = (self.settings, tasks, self.places, self._channel, Path.cwd())  # of a worker

    def _look(self) -> None:
        if self.clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self.clock()
        old, self._nodes = self._nodes, self.cluster.nodes()
        for lost in old.keys() - self._nodes.keys():
            self.display.note(f"the machine {old[lost].address} is lost; what ran there goes on from its checkpoints.")
        if self._nodes:
            self._seen_alive = self._looked
        elif self._looked - self._seen_alive > ALONE_SECONDS:
            raise UserError(
                f"for {ALONE_SECONDS / 60:.0f} minutes the cluster has had no machine with room for a trial.",
                hint="Add machines and run the same command: it goes on from the checkpoints.",
            )

    def _assign(self) -> None:
        """What waits longest goes to workers, of which there are as many as the machines have room for."""
        while self._waiting and len(self._running) < self.slots:
            run = self._waiting.popleft()
            if self.driver.ledger.remaining(run.method) <= closing_seconds():
                unpaid = "the budget was used up before this trial could begin. With a larger budget the same command runs it."
                self._give_up(run, BudgetSpent(unpaid))
                continue
            settings = self.settings.model_copy(update={"training": run.training})
            earlier = self.driver.ledger.bookings_of(trial.identifier for trial in run.missing)
            job = Job(
                uuid.uuid4().hex, run.cohort, settings, run.measures, self._folder, self._shared, frozenset(run.recorded), earlier
            )  # fmt: skip
            run.account = None
            run.worker = self._idle.pop() if self._idle else self.cluster.actor(RayWorker, *self._setup)
            run.call = run.worker.run.remote(job, self._rows_of(run.cohort.trials[0]))
            self._running[job.identifier] = run
        # One that was started before a loss was noticed waits for room, which those without work have to make.
        self._end_idle(self.slots - len(self._running))

    def _listen(self) -> None:
        """Until something happens, at most until the next look."""
        jobs = {run.call: job for job, run in self._running.items()}
        ready, _ = self.ray.wait([self._next_call, *jobs], num_returns=1, timeout=LOOK_SECONDS)
        for one in ready:
            if one in jobs:
                self._ended(jobs[one])
            else:  # one request for the next call is always under way, so that nothing is lost between two
                number, job, method, arguments = self.ray.get(self._next_call)
                self._next_call = self._channel.next.remote()
                if job in self._running:
                    self._channel.answer.remote(number, self._answer(self._running[job], method, arguments))

    def _answer(self, run: _Run, method: str, arguments: Sequence[Any]) -> Any:
        if method == "begin":
            return self.begin(run, *arguments)  # what is raised here is wrong with a machine, and ends the study
        try:
            return getattr(self, method)(run, *arguments)
        except Exception as error:  # raised by the worker, which records it: no money, a full disk
            return error

    # What workers call

    def begin(self, run: _Run, node_id: str, missing: Path | None) -> tuple[float, float | None]:
        """A worker has begun. Returns its price per hour, and the seconds it has to load. `missing`: what it does not see."""
        node = self.cluster.nodes().get(node_id)
        if missing is not None:
            shown = missing.parent if missing == self._marker else missing
            raise UserError(
                f"the machine {node_id if node is None else node.address} does not see {shown}: a study on a cluster "
                "needs its folder, and what it trains on, under the same path on every machine.",
                hint="Put them on a disk that all machines share: dollartune run STUDY.yaml --output /shared/studies",
            )
        price = self.cluster.slot_price if node is None else node.slot_price
        run.account = WorkerAccount(self.driver.ledger, price, run.cohort.trials)
        run.account.granted = self._most(run, run.account)
        return price, run.account.granted if self.driver.ledger.limited else None

    def book(self, run: _Run, pieces: Sequence[Piece], failed: frozenset[str], saved: bool) -> None:
        """What was spent since the last time. `saved`: it has led to a checkpoint."""
        assert run.account is not None
        run.account.book(pieces, failed)
        if saved:
            run.losses = 0

    def time_limit(self, run: _Run, cohort: Cohort, costs: EvaluationCost) -> TimeLimit:
        """What a cohort, or what is tried of it, may spend; all seconds are the worker's. See `engines.base.Driver`."""
        assert run.account is not None
        rate = run.account.rate
        limit = self.driver.time_limit(cohort, costs.at(rate))
        run.account.granted = min(limit.seconds * rate, self._most(run, run.account))
        return replace(limit, seconds=run.account.granted)

    def prune(self, run: _Run, trial: Trial, step: int, loss: float) -> bool:
        return self.driver.prune(trial, step, loss)

    def leave(self, run: _Run, trial: Trial, record: TrialRecord, predictions: Sequence[Prediction]) -> None:
        """A trial has its record; its adapter lies in the study's folder."""
        run.losses = 0
        # A worker that an alarm kept from hearing the answer leaves a record again.
        if trial.identifier not in run.recorded:
            self.driver.leave(trial, record, predictions)
            run.recorded.add(trial.identifier)

    def show(self, run: _Run, event: str, *facts: Any) -> None:
        """How far the work is: an event of `engines.display.Display`."""
        if event == "validated":
            trial, validation = facts
            if validation.step <= run.shown.get(trial.identifier, -1):
                return
            run.shown[trial.identifier] = validation.step
        getattr(self.display, event)(*facts)

    def _most(self, run: _Run, account: WorkerAccount) -> float:
        """What a run may spend at most from now on, in its worker's seconds, so that all together keep to the budget."""
        ledger = self.driver.ledger
        if not ledger.limited:
            return math.inf
        beside = [one for one in self._running.values() if one is not run]
        others = [one.account for one in beside if ledger.per == "study" or one.method == run.method]
        granted = sum((one.unspent() + closing_seconds()) / one.rate for one in others if one is not None)
        # runs that are about to begin share what nobody was granted: the first one does not take it all
        left = (ledger.remaining(run.method) - granted) / (1 + others.count(None))
        return max(0.0, left * account.rate - closing_seconds())

    # How a run ends

    def _ended(self, job: str) -> None:
        run = self._running[job]
        try:
            run.result = self.ray.get(run.call)
        except self.ray.exceptions.RayTaskError as error:  # of the work; the actor lives
            self._leave_worker(job)
            # Its stack stayed there: Ray brings it as text, in colours.
            error.cause.add_note(re.sub(r"\x1b\[[0-9;]*m", "", str(error)))
            self._give_up(run, error.cause)
        except self.ray.exceptions.RayError as error:
            self._leave_worker(job, lost=True)
            self._lost(run, error)
        else:
            self._leave_worker(job)

    def _leave_worker(self, job: str, lost: bool = False) -> None:
        """Its worker does nothing for a run any more, and is not answered."""
        run = self._running.pop(job)
        if run.account is not None:
            run.account.close(lost)
        if lost:
            self.ray.kill(run.worker)  # it may be alive, behind a connection that is not
        else:
            self._idle.append(run.worker)

    def _lost(self, run: _Run, error: Exception) -> None:
        """Begins again, with less memory where that was missing; what is lost again and again, trial by trial."""
        self._end_idle()  # a lost machine took its idle workers along, and nobody says which they were
        if not (run.missing or run.measures):
            return  # it was lost on its way from the last record to the end
        run.losses += 1
        text = str(error).strip()
        failure: Exception = ProcessLost(f"the process that ran it ended again and again: {text.splitlines()[0]}")
        again = run.losses <= LOSSES
        if isinstance(error, self.ray.exceptions.OutOfMemoryError):  # ended from outside, before it could notice
            failure = MemoryError("the machine ran out of memory and ended the process.")
            rows = run.training.micro_batch_size or run.training.batch_size
            smaller = halved_after_out_of_memory(failure, rows, "rows per pass on the cluster")
            again = smaller is not None
            run.training = run.training.model_copy(update={"micro_batch_size": smaller or rows})
        if again:
            self._waiting.appendleft(run)  # first: what has begun should end
        elif run.account is None:
            raise UserError(
                f"no worker can be started: {text.splitlines()[-1]}",
                hint="Is the same version of dollartune installed on every machine (pip install 'dollartune[ray]')? "
                "Their own words are in /tmp/ray/session_latest/logs",
            ) from error
        elif len(run.cohort.trials) > 1:  # the one that breaks takes no other with it
            alone = [_Run(replace(run.cohort, trials=(t,)), run.training, shown=run.shown) for t in run.missing]
            self._waiting.extendleft(reversed(alone))
        else:
            self._give_up(run, failure)

    def _give_up(self, run: _Run, error: Exception) -> None:
        """Records the trials that have none as failed; what only measures leaves no record."""
        run.result = error
        if run.measures:
            return
        for trial in run.missing:
            self.writer.failed(trial, error, run.cohort)
        if not isinstance(error, BudgetSpent):
            self.driver.checkpoints(run.cohort.name).clear()

    def _end_idle(self, keep: int = 0) -> None:
        while len(self._idle) > max(0, keep):
            self.ray.kill(self._idle.pop())

    def _rows_of(self, trial: Trial) -> Any:
        """Ray's reference to a trial's rows. They are the driver's, so that no machine takes them with it when it is lost."""
        key = (trial.task_index, trial.scale, trial.draw)
        if key not in self._rows:
            task = self.tasks[trial.task_index]
            splits = task.splits(trial.scale, self.settings.data_seed, self.settings.evaluation.rows, trial.draw)
            self._rows[key] = self.ray.put(splits)
        return self._rows[key]


def with_whole_paths(settings: StudySettings) -> StudySettings:
    """The same settings for a process in another folder, of another user, that sees the same disk."""

    def whole(path: str | None) -> str | None:
        return str(Path(path).expanduser().resolve()) if path else path

    backbones = tuple(
        one.model_copy(update={"name": from_anywhere(one.name), "anatomy": whole(one.anatomy)})
        for one in settings.backbones
    )
    evaluation = settings.evaluation.model_copy(update={"general_text": whole(settings.evaluation.general_text)})
    changes = {"backbones": backbones, "evaluation": evaluation, "begin_with": whole(settings.begin_with)}
    return settings.model_copy(update={**changes, "output": whole(settings.output)})


def read_by_training(settings: StudySettings) -> tuple[Path, ...]:
    """Files and folders outside the package that workers read, of settings with whole paths."""
    backbones = [name for one in settings.backbones for name in (one.name, one.anatomy)]
    paths = [Path(name) for name in (*backbones, settings.begin_with, settings.evaluation.general_text) if name]
    # Spelled in a method, a path is part of a trial's name: it stays as it is, and counts from the driver's folder.
    methods = (method for variant in variants(settings.methods) for method in variant.build())
    paths += [Path.cwd() / folder for method in methods for folder in getattr(method.config, "adapters", ())]
    return tuple(path for path in paths if path.is_absolute() and path.exists())  # a name of the hub is no path here
