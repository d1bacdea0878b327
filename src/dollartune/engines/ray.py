"""The engine of a Ray cluster: cohorts as Ray tasks, side by side, each on a part of a machine.

    driver (this process)                       Ray                         machine
    rows, backbone files      ---------->  object store  ------------->  NodeWorkshop
    cohort, checkpoint          ---------->  task  --------------------->  NodeWorker.run
    store, ledger, display    <----------  mailroom (actor here)  <----  records, checkpoints, seconds

Nothing that lasts is outside the driver's store. A machine that is lost takes with it what its cohorts did since their
last checkpoints; they go on elsewhere. Ray itself never repeats a task, and messages of an attempt that was given up are
not read, so that nothing is recorded or booked twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dollartune.budget.ledger import BudgetSpent
from dollartune.config import StudySettings
from dollartune.engines.base import Cohort, Driver, Pruning
from dollartune.engines.display import Display
from dollartune.engines.payload import packed_task
from dollartune.engines.promises import Promise, kept
from dollartune.engines.ray_attempts import Attempt, GiveUp, Retry, again
from dollartune.engines.ray_cluster import Cluster, Node
from dollartune.engines.ray_mailroom import Asks, Began, Doubts, Left, Mailroom, Message, Saved, Terms, Works
from dollartune.engines.ray_returns import Returns
from dollartune.engines.ray_warehouse import Warehouse
from dollartune.engines.ray_worker import Job, Shipment, clean, do
from dollartune.engines.remote_account import RemoteAccount, Spent
from dollartune.engines.rents import Rents
from dollartune.errors import UserError
from dollartune.planner.trial_cost import TrialCost
from dollartune.tasks.base import Splits, Task
from dollartune.trials.trial import Trial

LOOK_SECONDS = 0.5
"""How often the driver looks at machines and promises."""
ALONE_SECONDS = 600.0
"""How long a study waits for a machine when it has lost all."""

_UNPAID = (
    "the money was spent before this trial could begin: waiting for a machine, starting there and loading took the rest. "
    "With a larger budget the same command runs it."
)


@dataclass
class _Cost:
    """What a machine knows of a cohort's cost, in seconds at the ledger's price. See `engines.Timed`."""

    splits: Splits
    seconds_per_row: float | None
    seconds_per_validation_row: float


class RayEngine:
    """Runs cohorts on the machines of a Ray cluster.

    Args:
        driver: whom to ask for grants, and with whom records are left.
        settings: the study.
        tasks: of the study, with their rows.
        places: places in each input that stay free for virtual tokens.
        cluster: the machines.
        display: who shows progress.
    """

    def __init__(
        self,
        driver: Driver,
        settings: StudySettings,
        tasks: Iterable[Task],
        places: int,
        cluster: Cluster,
        display: Display,
    ) -> None:
        self.driver, self.settings, self.tasks, self.cluster, self.display = (
            driver,
            settings,
            list(tasks),
            cluster,
            display,
        )
        self.places = places
        self.ray = cluster.ray
        self.session = uuid.uuid4().hex[:12]
        self.slots = sum(node.slots for node in cluster.nodes().values())
        self.device = "cuda" if cluster.gpus else "cpu"
        self.checkpoint_seconds = 10.0
        """Least time between two checkpoints of a cohort."""
        self.report_seconds = 1.0
        """How often a machine says what it has spent: so much of its time may go unseen when it is lost."""
        self.rents = Rents(driver.ledger, settings.engine.idle)
        self._attempts: dict[str, Attempt] = {}
        self._nodes: dict[str, Node] = {}
        self._warehouse = Warehouse(self.ray, settings, self.tasks)
        self._returns = Returns(driver)
        self._mailroom: Any = None
        self._confirmed = 0
        self._looked = self._seen_alive = time.monotonic()
        self._prune: Pruning | None = None
        self._trial_cost: TrialCost | None = None

    # The engine's verbs

    def run(self, cohorts: Iterable[Cohort], prune: Pruning | None = None) -> None:
        self._prune = prune
        self._work([Attempt(cohort, self.settings.training) for cohort in cohorts])

    def measure(self, trial: Trial) -> TrialCost:
        self._trial_cost = None
        self._work([Attempt(Cohort((trial,)), self.settings.training, measures=True)])
        if self._trial_cost is None:
            raise RuntimeError("the machine that measured was lost again and again")
        return self._trial_cost

    def close(self) -> None:
        self.rents.close()
        if self._mailroom is not None:
            self._clean()
            self.ray.kill(self._mailroom)
        self.cluster.close()

    # The driver's loop

    def _work(self, attempts: Iterable[Attempt]) -> None:
        if self._mailroom is None:
            self._open()
        with self.driver.ledger.elsewhere():
            self._look()
            try:
                for attempt in attempts:
                    self._submit(attempt)
                while self._attempts:
                    self._read_mail(LOOK_SECONDS, 2 * LOOK_SECONDS)
                    self._harvest()
                    if time.monotonic() - self._looked >= LOOK_SECONDS:
                        self._look()
            finally:
                self._abandon()

    def _open(self) -> None:
        """The mailroom, on this machine: it lives and dies with the driver."""
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self.ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailroom = (
            self.ray.remote(Mailroom).options(num_cpus=0, max_task_retries=-1, scheduling_strategy=strategy).remote()
        )
        self._shipment = self.ray.put(
            Shipment(
                self.session, self.settings, self.places, tuple(packed_task(task) for task in self.tasks),
                self.driver.ledger.limit_seconds is not None or self.driver.ledger.limit_dollars is not None,
                self.driver.ledger.per == "method", self.cluster.cpus, self.cluster.gpus,
                self.checkpoint_seconds, self.report_seconds,
            )
        )  # fmt: skip

    def _submit(self, attempt: Attempt) -> None:
        cohort = attempt.cohort
        recorded = frozenset(t.identifier for t in cohort.trials if self.driver.has(t.identifier))
        job = Job(
            attempt.identifier, cohort, attempt.training, self._warehouse.goods(cohort.trials[0]), recorded,
            self._returns.checkpoint(attempt), attempt.measures, self._prune is not None,
        )  # fmt: skip
        task = self.ray.remote(do).options(
            num_cpus=self.cluster.cpus, num_gpus=self.cluster.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        attempt.task = task.remote(job, self._shipment, self._mailroom)
        self._attempts[attempt.identifier] = attempt

    def _read_mail(self, seconds: float, patience: float | None = None) -> None:
        """Deals with what has arrived.

        Args:
            seconds: how long the mailroom waits for a first message.
            patience: seconds after which the mailroom itself need not have answered (it may still be starting): what it
                says later it will say again.
        """
        try:
            mail = self.ray.get(self._mailroom.collect.remote(self._confirmed, seconds), timeout=patience)
        except self.ray.exceptions.GetTimeoutError:
            return
        except self.ray.exceptions.RayActorError as error:
            raise UserError(
                f"the mailroom of the study is lost: {str(error).strip().splitlines()[0]}",
                hint="Run the same command again: it goes on from the checkpoints.",
            ) from error
        for number, message in mail:
            attempt = self._attempts.get(message.attempt)
            if attempt is not None:  # else it was given up, and goes on as a ghost
                self._read(attempt, message)
            self._confirmed = number

    def _harvest(self) -> None:
        """Ends attempts whose tasks have ended."""
        tasks = {attempt.task: attempt for attempt in self._attempts.values()}
        ended, _ = self.ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        if not ended:
            return
        self._read_mail(0.0)  # what they said before they ended
        for attempt in (tasks[task] for task in ended):
            try:
                spent, trial_cost = self.ray.get(attempt.task)
            except self.ray.exceptions.RayError as error:
                self._lost(attempt, error)
                continue
            self._trial_cost = trial_cost or self._trial_cost
            self._end(attempt, spent)

    def _look(self) -> None:
        """Which machines there are, what they cost while they wait, and what the promises are still worth."""
        self._looked = time.monotonic()
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
        self.rents.update(self._nodes, list(self._attempts.values()))
        self._keep_promises()
        self._end_unpaid()

    def _keep_promises(self) -> None:
        open_ones: dict[str, Promise] = {}
        for attempt in self._attempts.values():
            if attempt.promised is not None and attempt.account is not None:
                left = attempt.promised - attempt.account.seconds(attempt.method)
                open_ones[attempt.identifier] = Promise(attempt.method, max(0.0, left), attempt.account.price_per_hour)
        if not open_ones:
            return
        waiting = any(attempt.account is None for attempt in self._attempts.values())
        found = kept(open_ones, self.driver.ledger, self.rents.idle(waiting))
        limits = {}
        for name, seconds in found.items():
            attempt = self._attempts[name]
            assert attempt.account is not None
            limits[name] = attempt.account.seconds(attempt.method) + seconds
        self._mailroom.limit.remote(limits)

    def _end_unpaid(self) -> None:
        """Stops attempts whose money is gone before they could ask for their share of it: while they waited for a
        machine, while Ray started a process for them, while they loaded. Nothing is lost with them."""
        ledger = self.driver.ledger
        for attempt in [attempt for attempt in self._attempts.values() if attempt.promised is None]:
            method = attempt.cohort.trials[0].variant.group if ledger.per == "method" else None
            if ledger.remaining(method) > self._unheard_seconds():
                continue
            self._stop(attempt)
            if attempt.measures:
                raise BudgetSpent(_UNPAID)
            for trial in attempt.cohort.trials:
                if not self.driver.has(trial.identifier):
                    self._returns.fail(attempt, trial, GiveUp("budget", _UNPAID))

    def _unheard_seconds(self) -> float:
        """What all machines together spend before the driver hears of it and acts, at the ledger's price."""
        burning = sum(node.slots / self._rate(node.slot_price) for node in self._nodes.values())
        return (LOOK_SECONDS + self.report_seconds) * burning

    def _abandon(self) -> None:
        """Stops what still runs (Ctrl-C, an error): its checkpoints and records are here, its time is booked."""
        for attempt in list(self._attempts.values()):
            self._stop(attempt)

    def _stop(self, attempt: Attempt) -> None:
        self.ray.cancel(attempt.task, force=True)
        self._end(attempt, None)

    # What a machine says

    def _read(self, attempt: Attempt, message: Message) -> None:
        if isinstance(message, Began):
            self._begin(attempt, message)
        if attempt.account is None:
            return
        attempt.account.report(message.spent)
        if isinstance(message, Asks):
            self._answer(attempt, self._grant(attempt, message))
        elif isinstance(message, Doubts):
            trial = attempt.trial(message.trial)
            self._answer(attempt, self._prune is not None and self._prune(trial, message.step, message.loss))
        elif isinstance(message, Saved):
            self._returns.keep_checkpoint(attempt, message)
        elif isinstance(message, Left):
            self._returns.keep_record(attempt, message)
        elif isinstance(message, Works):
            attempt.show(self.display, message)

    def _begin(self, attempt: Attempt, message: Began) -> None:
        if message.node not in self._nodes:
            self._nodes = self.cluster.nodes()
        node = self._nodes.get(message.node)
        if node is None:  # lost again already: Ray will say so
            return
        account = RemoteAccount(self.driver.ledger, node.slot_price)
        account.report(message.spent)
        attempt.begin(node, message.process, account)
        before = {trial.identifier: self._returns.booked(trial) for trial in attempt.cohort.trials}
        self._answer(attempt, Terms(node.slot_price, before))

    def _grant(self, attempt: Attempt, message: Asks) -> Any:
        assert attempt.account is not None
        trials = tuple(attempt.trial(name) for name in message.trials)
        rate = self._rate(attempt.account.price_per_hour)
        splits = self._warehouse.rows(trials[0])[0]
        per_row = None if message.seconds_per_row is None else message.seconds_per_row / rate
        cost = _Cost(splits, per_row, message.seconds_per_validation_row / rate)
        try:
            time_limit = self.driver.time_limit(Cohort(trials, attempt.cohort.purpose), cost)
        except BudgetSpent as error:
            return str(error)
        return attempt.promise(time_limit, rate)

    def _rate(self, price_per_hour: float) -> float:
        """Seconds of a machine for one second at the ledger's price: grants are made in those."""
        ledger = self.driver.ledger
        if ledger.limit_dollars is None or price_per_hour <= 0:
            return 1.0
        rate = ledger.price_per_hour / price_per_hour
        return rate if ledger.limit_seconds is None else min(1.0, rate)

    def _answer(self, attempt: Attempt, answer: Any) -> None:
        self._mailroom.answer.remote(attempt.identifier, answer)

    # How an attempt ends

    def _end(self, attempt: Attempt, spent: Spent | None, lost: bool = False) -> None:
        del self._attempts[attempt.identifier]
        if attempt.account is not None:
            if spent is not None:
                attempt.account.report(spent)
            self.rents.ended(attempt)
            attempt.account.close(lost)

    def _lost(self, attempt: Attempt, error: Exception) -> None:
        """A task ended without a result: a machine or a process was lost, memory ran out, or there is a bug."""
        self._end(attempt, None, lost=True)
        self._look()
        missing = [trial for trial in attempt.cohort.trials if not self.driver.has(trial.identifier)]
        if not missing and not attempt.measures:
            return
        lives = attempt.node is None or attempt.node.identifier in self._nodes
        decision = again(attempt, error, self.ray.exceptions, lives, self._returns.checkpoint(attempt))
        if isinstance(decision, Retry):
            for retry in decision.attempts:
                if attempt.measures or any(not self.driver.has(t.identifier) for t in retry.cohort.trials):
                    self._submit(retry)
            return
        if attempt.measures:
            raise RuntimeError(decision.message) from error
        for trial in missing:
            self._returns.fail(attempt, trial, decision)
        self._returns.forget(attempt.cohort)

    def _clean(self) -> None:
        """Backbones that machines have written to their disks go with the study."""
        on = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        tasks = [
            self.ray.remote(clean)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=on(name, soft=False))
            .remote(self.session)
            for name in self.cluster.nodes()
        ]
        self.ray.wait(tasks, num_returns=len(tasks), timeout=10)
