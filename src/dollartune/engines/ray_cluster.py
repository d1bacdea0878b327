"""The machines of a Ray cluster: how to reach them, how many cohorts each can run, what each costs.

A machine's price is, in this order: its label `dollartune-price` (dollars per hour), its label `dollartune-machine` (a
name of the price table), the price of the study's budget.

    ray start --address HEAD:6379 --labels dollartune-price=2.49
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.budget.prices import find_price
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.config import EngineSettings

PRICE_LABEL, MACHINE_LABEL = "dollartune-price", "dollartune-machine"
CONNECT_SECONDS = 5.0
"""How long an address may take to answer; Ray itself would try for minutes and then end the process."""


class Channel:
    """An actor between the driver, which is none, and its workers: takes their calls of the driver, and hands back answers."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()

    async def call(self, job: str, method: str, *arguments: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((number, job, method, arguments))
        return await answer

    async def next(self) -> tuple[Any, ...]:
        """The driver takes the next call, as soon as there is one: its number, job, method and arguments."""
        return await self._calls.get()

    async def answer(self, number: int, answer: Any) -> None:
        self._answers.pop(number).set_result(answer)


@dataclass(frozen=True)
class Node:
    """One machine."""

    identifier: str
    """Ray's name."""
    address: str
    slots: int
    """Cohorts that it runs at the same time."""
    slot_price: float
    """Dollars per hour of what one cohort occupies."""


class Cluster:
    """A connection to a Ray cluster.

    Args:
        settings: address, and what a cohort occupies.
        price_per_hour: of a machine without a label.

    Raises:
        UserError: Ray is not installed, nobody answers at the address, or no machine has room for a cohort.
    """

    def __init__(self, settings: EngineSettings, price_per_hour: float = 0.0) -> None:
        self.default_price = price_per_hour
        self.ray = _import_ray()
        self._began_here = not self.ray.is_initialized()
        if self._began_here:
            self._connect(settings.address)
        self.cpus = settings.cpus
        resources = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        has_gpus = any(one.get("GPU", 0) > 0 for one in resources)
        self.gpus = settings.gpus if settings.gpus is not None else float(has_gpus)
        if not self.nodes():
            self.close()
            have = "; ".join(f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in resources)
            raise UserError(
                f"no machine of the cluster has the {self.cpus:g} CPUs and {self.gpus:g} GPUs that a worker asks for; "
                f"they have: {have}.",
                hint="Ask for less in the study file: engine: {name: ray, cpus: 1, gpus: 0.5}.",
            )

    def nodes(self) -> dict[str, Node]:
        """Machines that are alive now and have room for a cohort, by Ray's name."""
        alive = [self._node(node) for node in self.ray.nodes() if node["Alive"]]
        return {node.identifier: node for node in alive if node.slots}

    @property
    def slot_price(self) -> float:
        """Dollars per hour of what a cohort occupies on the dearest machine: the price at which budgets are divided."""
        return max((node.slot_price for node in self.nodes().values()), default=self.default_price)

    def actor(self, kind: type, *arguments: Any) -> Any:
        """Starts an actor on a part of a machine, and gives it that part's threads and GPUs. Machines take turns."""
        # None of Ray's restarts: who takes over is told anew what may be spent, and on which machine it is.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}
        return self.ray.remote(kind).options(**options).remote(*arguments, max(1, int(self.cpus)), self.gpus)

    def channel(self) -> Any:
        """A channel on this machine, so that it lives as long as the driver does."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # soft=False: on another machine it would die with that machine, and every worker's messages with it.
        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        return self.ray.remote(Channel).options(num_cpus=0, scheduling_strategy=here).remote()

    def close(self) -> None:
        """Leaves the cluster, if this process entered it for the study."""
        if self._began_here and self.ray.is_initialized():
            self.ray.shutdown()

    def _connect(self, address: str | None) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address is not None and address not in ("auto", "local"):
            _knock(address)
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"there is no Ray cluster at {address or 'auto'!r}: {first}", hint=_START) from None

    def _node(self, node: Mapping[str, Any]) -> Node:
        resources, labels = node["Resources"], node.get("Labels") or {}
        room, gpus = resources.get("CPU", 0.0) / self.cpus, resources.get("GPU", 0.0)
        if self.gpus > 0:
            # 0.3 of a GPU fit three times into each: the tenth that is left of two is no fifth of a GPU.
            room = min(room, gpus * int(1 / self.gpus) if self.gpus < 1 else gpus / self.gpus)
        # 33 / 1.1 is 29.999999999999996.
        slots, price = int(room + 1e-9), self.default_price
        try:
            if PRICE_LABEL in labels or MACHINE_LABEL in labels:
                price = find_price(labels.get(PRICE_LABEL), labels.get(MACHINE_LABEL))
        except UserError as error:
            raise UserError(
                f"machine {node['NodeManagerAddress']} of the cluster: {error.message}", error.hint
            ) from None
        return Node(node["NodeID"], node["NodeManagerAddress"], slots, price / max(1, slots))


_START = "Start one: `ray start --head --port 6379` here, `ray start --address HOST:6379` on every other machine."


def _import_ray() -> Any:
    # Ray reports its use over the network unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray recommends against its own warning
    try:
        import ray
    except ImportError:
        raise UserError(
            "the engine 'ray' needs Ray, which is not installed.", hint="pip install 'dollartune[ray]'"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises a `UserError` where nobody answers, or where it is no address."""
    match = re.fullmatch(r"(?:ray://)?(\[[^]]+\]|[^:/]+):(\d+)", address)
    if match is None:
        raise UserError(f"{address!r} is not the address of a Ray cluster.", hint="HOST:6379, ray://HOST:10001 or auto")
    try:
        # Brackets are those of an IPv6 address.
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"nobody answers at {address!r}: {error.strerror or error}.", hint=_START) from None
