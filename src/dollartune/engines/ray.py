"""The engine of a Ray cluster: one actor per worker, cohorts side by side, each worker on a part of a machine.

    waiting cohorts  -- run(job): a call of a worker's actor -->  load, train, evaluate
    driver           <---- Channel: messages and answers ---->    records, seconds, progress; time limits

Store and ledger are written by this process alone. A lost actor is restarted by Ray and its call repeated, on any machine with
room. That is safe: what is recorded is never done again, the rest goes on from the checkpoint in the study's folder, and each
attempt asks what it may spend. With its first message an attempt takes the place of the one before; what that one has
spent since its checkpoint is booked as `failure`, and nothing that it still says counts.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dollartune.budget.deadline import BudgetSpent, closing_seconds
from dollartune.engines.base import Cohort, Driver, Pruning, TimeLimit
from dollartune.engines.payload import (
    Began,
    Job,
    Loaded,
    Message,
    Payload,
    Recorded,
    Report,
    Terms,
    Validated,
    packed_splits,
    packed_task,
    shared_paths,
    whole_paths,
)
from dollartune.engines.worker_account import WorkerAccount
from dollartune.errors import UserError
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.out_of_memory import halved_after_out_of_memory
from dollartune.trials.build_record import error_class, failed_record
from dollartune.trials.record import Cost

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.display import Display
    from dollartune.engines.ray_cluster import Cluster
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.tasks.base import Splits, Task
    from dollartune.train.settings import TrainingSettings
    from dollartune.trials.trial import Trial

LOOK_SECONDS = 0.5
"""How often the driver looks at the machines: a look is a call of Ray's, which takes some milliseconds."""
ALONE_SECONDS = 600.0
"""How long a study waits for a machine when it has lost all: a cluster of spot machines is refilled in minutes."""

_UNPAID = "the budget was used up before this trial could begin. With a larger budget the same command runs it."


@dataclass
class _RowCost:
    """What a cohort costs at the ledger's price. See `engines.base.EvaluationCost`."""

    splits: Splits
    seconds_per_row: float | None
    seconds_per_validation_row: float


@dataclass(eq=False)
class _Run:
    """A cohort that waits for a worker or is at one."""

    cohort: Cohort
    training: TrainingSettings
    measures: bool = False
    identifier: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    worker: Any = None
    """The actor."""
    call: Any = None
    """Ray's reference to the answer that is awaited."""
    ended: bool = False
    # Of the newest attempt
    attempt: str = ""
    account: WorkerAccount | None = None
    # Of all attempts
    saved: bool = False
    """Whether there is a checkpoint."""
    recorded: set[str] = field(default_factory=set)
    """Trials that have left a record."""
    shown: dict[str, int] = field(default_factory=dict)
    """Trial -> how many of its validations the display was told."""

    def trial(self, identifier: str) -> Trial:
        """One of its trials."""
        return next(trial for trial in self.cohort.trials if trial.identifier == identifier)


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
        self.device = "cuda" if cluster.gpus else "cpu"
        self.checkpoint_seconds = 10.0
        """Least time between two checkpoints of a cohort: what a lost machine costs at most."""
        self.report_seconds = 1.0
        """How often a worker says what it has spent: so much of its time may go unseen when it is lost."""
        self.worker_clock: Callable[[], float] = time.monotonic
        self._nodes = cluster.nodes()
        self.slots = sum(node.slots for node in self._nodes.values())
        self._looked = self._seen_alive = clock()
        self._payload: Any = None
        self._channel: Any = None
        self._next_message: Any = None
        self._rows: dict[tuple[int, int | None, int | None], tuple[Splits, Any]] = {}
        self._waiting: deque[_Run] = deque()
        self._running: dict[str, _Run] = {}
        self._idle: list[Any] = []
        """Actors without work; their backbones stay loaded."""
        self._prune: Pruning | None = None
        self._measured: TrialCost | Exception | None = None

    # The engine's verbs

    def run(self, cohorts: Iterable[Cohort], prune: Pruning | None = None) -> None:
        self._prune = prune
        self._work([_Run(cohort, self.settings.training) for cohort in cohorts])

    def measure(self, trial: Trial) -> TrialCost:
        self._measured = BudgetSpent(_UNPAID)
        self._work([_Run(Cohort((trial,)), self.settings.training, measures=True)])
        if isinstance(self._measured, Exception):
            raise self._measured
        assert self._measured is not None
        return self._measured

    def close(self) -> None:
        for worker in self._idle:
            self.ray.kill(worker, no_restart=True)
        self._idle.clear()
        if self._channel is not None:
            self.ray.kill(self._channel, no_restart=True)
            self._marker.unlink(missing_ok=True)
        self.cluster.close()

    # The driver's loop

    def _work(self, runs: Iterable[_Run]) -> None:
        if self._channel is None:
            self._open()
        self._waiting.extend(runs)
        with self.driver.ledger.elsewhere():
            try:
                while self._waiting or self._running:
                    self._look()
                    self._assign()
                    self._listen()
            finally:  # Ctrl-C, an error: records and checkpoints are here, the time is booked
                self._waiting.clear()
                for run in list(self._running.values()):
                    self.ray.kill(run.worker, no_restart=True)
                    self._leave(run)

    def _open(self) -> None:
        """The channel, and what every worker gets."""
        self._channel = self.cluster.channel()
        self._next_message = self._channel.next.remote()
        settings = whole_paths(self.settings)
        folder = self.driver.folder("").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        # A worker that sees it shares this disk, and may write checkpoints and adapters where they belong. It is of this
        # run: a folder of the same name on another machine's disk does not have it
        self._marker = folder.parent / f".shared-{uuid.uuid4().hex[:12]}"
        self._marker.touch()
        self._payload = self.ray.put(
            Payload(
                settings, tuple(packed_task(task) for task in self.tasks), self.places, folder,
                (self._marker, *shared_paths(settings)), self.driver.ledger.per == "method", self.checkpoint_seconds,
                self.report_seconds, self.worker_clock,
            )
        )  # fmt: skip

    def _look(self) -> None:
        """Which machines there are."""
        if self.clock() - self._looked < LOOK_SECONDS:
            return
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
                f"for {ALONE_SECONDS / 60:.0f} minutes the cluster has had no machine with room for a trial.",
                hint="Add machines and run the same command: it goes on from the checkpoints.",
            )

    def _assign(self) -> None:
        """What waits longest goes to workers, of which there are as many as the machines have room for."""
        from dollartune.engines.ray_worker import RayWorker  # what trains: nothing of it runs in this process

        while self._waiting and len(self._running) < self.slots:
            run = self._waiting.popleft()
            if self.driver.ledger.remaining(self._account_of(run)) <= closing_seconds():
                self._give_up(run, "budget", _UNPAID)
                continue
            run.worker = self._idle.pop() if self._idle else self.cluster.actor(RayWorker, self._payload, self._channel)
            rows = self._rows_of(run.cohort.trials[0])[1]
            job = Job(run.identifier, run.cohort, run.training, rows, self._prune is not None, run.measures)
            run.call = run.worker.run.remote(job)
            self._running[run.identifier] = run
        # A machine was lost: who has nothing to do makes room for the actors that Ray wants to restart
        while self._idle and len(self._running) + len(self._idle) > self.slots:
            self.ray.kill(self._idle.pop(), no_restart=True)

    def _listen(self) -> None:
        """Until something happens, at most until the next look."""
        calls = {run.call: run for run in self._running.values() if not run.ended}
        ready, _ = self.ray.wait([self._next_message, *calls], num_returns=1, timeout=LOOK_SECONDS)
        for one in ready:
            if one in calls:  # the channel keeps its order, so this comes after all that the worker has said
                calls[one].ended = True
                self._channel.say.remote(calls[one].identifier)
            else:  # one request for the next message is always under way, so that nothing is lost between two
                message = self.ray.get(self._next_message)
                self._next_message = self._channel.next.remote()
                self._read(message)

    # What a worker says

    def _read(self, message: Message | str) -> None:
        if isinstance(message, str):
            self._call_ended(self._running[message])
            return
        run = self._running.get(message.job)
        if run is not None and isinstance(message, Began):
            self._answer(message, self._begin(run, message))
            return
        if run is None or run.account is None or message.attempt != run.attempt:
            return
        run.account.report(message.spent, message.failed)
        if isinstance(message, Recorded):
            run.account.keep()
            if (trial := run.trial(message.trial)) in self._missing(run):
                run.recorded.add(message.trial)
                self.driver.leave(trial, message.record, message.predictions)
        elif isinstance(message, Loaded):
            self._answer(message, self._time_limit(run, run.account, message))
        elif isinstance(message, Validated):
            ends = self._prune is not None and self._prune(run.trial(message.trial), message.step, message.loss)
            self._answer(message, ends)
        elif isinstance(message, Report):
            if message.saved:
                self._saved(run)
            self._show(run, message)

    def _answer(self, message: Message, answer: object) -> None:
        self._channel.answer.remote(message.attempt, answer)

    def _begin(self, run: _Run, message: Began) -> Terms:
        """The terms of a new attempt. The one before, if there was one, has ended without a word."""
        if run.account is not None:
            run.account.close(lost=True)
        if message.node not in self._nodes:
            self._nodes = self.cluster.nodes()
        node = self._nodes.get(message.node)
        if message.missing is not None:
            shown = message.missing.parent if message.missing == self._marker else message.missing
            raise UserError(
                f"the machine {message.node if node is None else node.address} does not see {shown}: a study on a cluster "
                "needs its folder, and what it trains on, under the same path on every machine.",
                hint="Put them on a disk that all machines share: dollartune run STUDY.yaml --output /shared/studies",
            )
        price = self.cluster.slot_price if node is None else node.slot_price
        run.attempt, run.account = message.attempt, WorkerAccount(self.driver.ledger, price)
        run.account.report(message.spent, message.failed)
        # no reserve yet: nothing is trained while loading
        limit = run.account.limit_to(TimeLimit(self._most(run, run.account), 0.0, self._account_of(run)))
        recorded = {t.identifier for t in run.cohort.trials} - {t.identifier for t in self._missing(run)}
        spent = {trial.identifier: self._spent(trial, price) for trial in run.cohort.trials}
        seconds = limit.seconds if self.driver.ledger.limited else None
        return Terms(price, seconds, frozenset(recorded), spent)

    def _saved(self, run: _Run) -> None:
        assert run.account is not None
        run.account.keep()
        run.saved = True

    def _show(self, run: _Run, report: Report) -> None:
        if report.states:
            self.display.training(run.cohort.trials, report.states)
        for state in report.states:
            for validation in state.progress.history[run.shown.get(state.name, 0) :]:
                self.display.validated(run.trial(state.name), validation)
            run.shown[state.name] = len(state.progress.history)
        if report.evaluating is not None:
            self.display.evaluating(run.trial(report.evaluating))

    # Money

    def _account_of(self, run: _Run) -> str | None:
        """Whose money a run spends; None is the study's."""
        return run.cohort.trials[0].variant.group if self.driver.ledger.per == "method" else None

    def _most(self, run: _Run, account: WorkerAccount) -> float:
        """What a run may spend at most from now on, in its worker's seconds, so that all together keep to the budget."""
        ledger, method = self.driver.ledger, self._account_of(run)
        if not ledger.limited:
            return float("inf")
        others = [one.account for one in self._running.values() if one is not run and self._account_of(one) == method]
        granted = sum((one.unspent() + closing_seconds()) / one.rate for one in others if one is not None)
        # runs that are about to begin share what nobody was granted: the first one does not take it all
        left = (ledger.remaining(method) - granted) / (1 + others.count(None))
        return max(0.0, left * account.rate - closing_seconds())

    def _time_limit(self, run: _Run, account: WorkerAccount, loaded: Loaded) -> TimeLimit | BudgetSpent:
        """What a cohort, or what is tried of it, may spend in its worker's seconds; the error where that is too little."""
        rate, splits = account.rate, self._rows_of(run.cohort.trials[0])[0]
        per_row = None if loaded.seconds_per_row is None else loaded.seconds_per_row / rate
        cost = _RowCost(splits, per_row, loaded.seconds_per_validation_row / rate)
        trials = tuple(trial for trial in self._missing(run) if trial.identifier in loaded.trials)
        try:
            limit = self.driver.time_limit(replace(run.cohort, trials=trials), cost)
        except BudgetSpent as error:
            return error
        return account.limit_to(replace(limit, seconds=min(limit.seconds * rate, self._most(run, account))))

    def _spent(self, trial: Trial, price_per_hour: float) -> Cost:
        """What all attempts have booked for a trial."""
        pieces = [piece for piece in self.driver.ledger.pieces()[0] if piece.trial == trial.identifier]
        seconds, dollars = sum(piece.seconds for piece in pieces), sum(piece.dollars for piece in pieces)
        return Cost(seconds=seconds, dollars=dollars, price_per_hour=price_per_hour)

    # How a run ends

    def _leave(self, run: _Run, lost: bool = False) -> None:
        """Its worker does nothing for it any more."""
        del self._running[run.identifier]
        if run.account is not None:
            run.account.close(lost)

    def _call_ended(self, run: _Run) -> None:
        try:
            answer: TrialCost | None = self.ray.get(run.call)
        except self.ray.exceptions.RayTaskError as error:  # the actor lives
            self._idle.append(run.worker)
            self._leave(run)
            self._failed(run, getattr(error, "cause", None) or error)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(run.worker, no_restart=True)
            self._leave(run, lost=True)
            self._lost(run, error)
        else:
            self._idle.append(run.worker)
            self._leave(run)
            if run.measures:
                self._measured = answer
            elif self._missing(run):
                self._failed(run, RuntimeError("it ended without a record"))

    def _failed(self, run: _Run, error: Exception) -> None:
        self._measured = error
        self._give_up(run, error_class(error), f"{type(error).__name__}: {error}")

    def _lost(self, run: _Run, error: Exception) -> None:
        """What Ray has tried again in vain: with less memory, trial by trial, or not any more.

        Raises:
            UserError: workers cannot even be started.
        """
        text = str(error).strip()
        if not run.attempt:
            imports = any(sign in text for sign in ("failed to import", "ModuleNotFoundError", "ImportError"))
            what = "a machine of the cluster cannot import dollartune" if imports else "no worker can be started"
            hint = "Install the same version everywhere: pip install 'dollartune[ray]'"
            logs = "ray status; the machine's own words are in /tmp/ray/session_latest/logs"
            raise UserError(f"{what}: {text.splitlines()[-1]}", hint if imports else logs) from error
        kind, message = "crash", f"the process that ran it ended again and again: {text.splitlines()[0]}"
        again: list[_Run] = []
        if isinstance(error, self.ray.exceptions.OutOfMemoryError):  # from outside, before the process could notice
            kind, message = "out_of_memory", "the machine ran out of memory and ended the process."
            rows = run.training.micro_batch_size or run.training.batch_size
            smaller = halved_after_out_of_memory(MemoryError(), rows, "rows per pass on the cluster")
            if smaller is not None:
                again = [_Run(run.cohort, run.training.model_copy(update={"micro_batch_size": smaller}))]
        elif run.saved:  # it got further, so it is its machines that go
            again = [_Run(run.cohort, run.training)]
        if not again and len(run.cohort.trials) > 1:  # the one that breaks takes no other with it
            again = [_Run(replace(run.cohort, trials=(trial,)), run.training) for trial in self._missing(run)]
        self._measured = RuntimeError(message)
        if again and not run.measures:
            self._waiting.extendleft(reversed(again))  # first: what has begun should end
        else:
            self._give_up(run, kind, message)

    def _give_up(self, run: _Run, kind: str, message: str) -> None:
        """Records the trials that have none as failed; what only measures leaves no record."""
        if run.measures:
            return
        price = self.cluster.slot_price if run.account is None else run.account.price_per_hour
        for trial in self._missing(run):
            self.driver.leave(trial, failed_record(trial, kind, message, self._spent(trial, price)))
        if kind != "budget":
            Checkpoints(self.driver.folder(run.cohort.name) / "checkpoint").clear()

    def _missing(self, run: _Run) -> list[Trial]:
        """Trials without their record; one that is to be evaluated has that of its search already."""

        def done(trial: Trial) -> bool:
            return trial.identifier in run.recorded or (
                run.cohort.purpose != "evaluate" and self.driver.has(trial.identifier)
            )

        return [trial for trial in run.cohort.trials if not done(trial)]

    def _rows_of(self, trial: Trial) -> tuple[Splits, Any]:
        """The rows of a trial's task and scale, and their reference in Ray's object store. They are put there once, by the
        driver, so that no machine takes them with it when it is lost."""
        key = (trial.task_index, trial.scale, trial.draw)
        if key not in self._rows:
            task = self.tasks[trial.task_index]
            splits = task.splits(trial.scale, self.settings.data_seed, self.settings.evaluation.rows, trial.draw)
            self._rows[key] = splits, self.ray.put(packed_splits(splits))
        return self._rows[key]
