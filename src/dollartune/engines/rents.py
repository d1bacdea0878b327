"""The rent of machines that wait: they cost as much as those that work.

    machine   |==cohort==|     |====cohort====|          |     each slot
    booked    |  cohort  | idle|    cohort    |   idle   |     together the machine's price, from first to last

Idle time is nobody's own: it is shared, as loading is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from dollartune.budget.ledger import Ledger
from dollartune.engines.promises import Idle
from dollartune.engines.ray_attempts import Attempt
from dollartune.engines.ray_cluster import Node
from dollartune.engines.remote_account import Entry, RemoteAccount, Spent


class Rents:
    """Books what machines cost while they wait.

    Args:
        counted: false books nothing, on a cluster that others pay for.
        clock: seconds that never run backwards.
    """

    def __init__(self, ledger: Ledger, counted: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.ledger, self.counted, self.clock = ledger, counted, clock
        self._accounts: dict[str, RemoteAccount] = {}
        self._since: dict[str, float] = {}
        self._worked: dict[str, float] = {}
        """Machine -> seconds of the whole machine in which cohorts worked that have ended."""
        self._idle = Idle()

    def update(self, nodes: Mapping[str, Node], attempts: Sequence[Attempt]) -> None:
        """Books what each machine has waited until now."""
        now, machines, price = self.clock(), 0.0, 0.0
        for name in [name for name in self._accounts if name not in nodes]:
            self._accounts.pop(name).close(lost=False)
        for name, node in nodes.items() if self.counted else ():
            if not node.slots and not node.price_per_hour:
                continue
            if name not in self._accounts:
                self._accounts[name] = RemoteAccount(self.ledger, node.price_per_hour)
                self._since[name], self._worked[name] = now, 0.0
            running = [a for a in attempts if a.node is not None and a.node.identifier == name]
            slots = max(1, node.slots)
            worked = self._worked[name] + sum(now - a.began for a in running) / slots
            entry = Entry(f"idle-{self.ledger.session}-{name[:12]}", "other", None, None)
            self._accounts[name].report(Spent({entry: max(0.0, now - self._since[name] - worked)}))
            free = max(0.0, 1 - len(running) / slots)
            machines, price = machines + free, price + free * node.price_per_hour
        self._idle = Idle(machines, price)

    def idle(self, units_wait: bool) -> Idle:
        """What waits beside the running cohorts; nothing while there are cohorts that wait for a machine."""
        return Idle() if units_wait else self._idle

    def ended(self, attempt: Attempt) -> None:
        """A cohort has ended: what it has booked is what it worked, and its machine is free."""
        if attempt.node is not None and attempt.account is not None and attempt.node.identifier in self._worked:
            self._worked[attempt.node.identifier] += attempt.account.seconds() / max(1, attempt.node.slots)

    def close(self) -> None:
        """Books the rest."""
        for account in self._accounts.values():
            account.close(lost=False)
        self._accounts.clear()
