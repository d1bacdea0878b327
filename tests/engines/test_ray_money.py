"""One budget over all machines of a cluster, on a simulated clock: whatever starts, loads, waits or is lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from simulated_cluster import SimulatedCluster, SimulatedStudy, Work

from dollartune.engines.base import TimeLimit
from dollartune.engines.ray_cluster import Node
from dollartune.errors import UserError
from dollartune.study_file import load_study

HOUR = 3600.0
CLOSING = 1.0
"""Seconds that the engine keeps for closing its books: measured elsewhere, as they depend on how busy a machine is."""


@pytest.fixture(autouse=True)
def closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dollartune.engines.ray.closing_seconds", lambda: CLOSING)


@pytest.fixture
def study(study_of: Any, tmp_path: Path) -> Any:
    def make(cluster: SimulatedCluster, methods: Any = ("bitfit", "ia3"), idle: bool = True, **ledger: Any) -> Any:
        settings = load_study(study_of(methods=list(methods), seeds=1, engine={"name": "ray", "idle": idle}))
        return SimulatedStudy(settings, cluster, tmp_path / "trials", **ledger)

    return make


def two(**changes: Any) -> SimulatedCluster:
    """Two machines with room for one worker each, at 1 and 2 dollars per second."""
    return SimulatedCluster([Node("a", "a", 1, 1 * HOUR), Node("b", "b", 1, 2 * HOUR)], **changes)


def keeps(one: SimulatedStudy, least: float = 0.0) -> None:
    """It has spent no more than its limit, and at least that part of it; each second of its workers is booked once."""
    spent, limit = one.ledger.spent_dollars(), one.ledger.limit_dollars
    assert limit is not None
    assert least * limit <= spent <= limit
    pieces = one.ledger.pieces()[0]
    assert len({(piece.session, piece.number) for piece in pieces}) == len(pieces)
    if one.engine.pays_waiting:
        assert sum(piece.seconds for piece in pieces) == pytest.approx(one.paid(), abs=2.0)


MONEY: dict[str, Any] = {"limit_dollars": 180.0, "price_per_hour": 2 * HOUR}


def test_one_budget_holds_for_machines_of_unlike_prices(study: Any) -> None:
    one = study(two(), **MONEY)
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one, least=0.85)


@pytest.mark.parametrize("idle", [True, False])
def test_workers_may_be_done_a_moment_after_their_limit(study: Any, idle: bool) -> None:
    one = study(two(work=lambda node: Work(late=0.9 * CLOSING)), idle=idle, **MONEY)
    one.time_limit = lambda cohort, context: TimeLimit(math.inf)  # the engine's own bound alone
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one, least=0.8)


def test_a_machine_that_waits_for_the_last_cohort_is_paid_for(study: Any) -> None:
    # b is done after 3 seconds of training and waits, while a trains until the money ends
    one = study(two(work=lambda node: Work(train=math.inf if node.identifier == "a" else 3.0)), **MONEY)
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one, least=0.8)
    totals = one.ledger.totals().by_category
    assert totals["other"] > 30


def test_money_that_runs_out_while_processes_start_is_not_overspent(study: Any) -> None:
    one = study(two(work=lambda node: Work(start=500.0)), **MONEY)
    one.run()
    assert one.ends() == ["budget", "budget"]
    keeps(one, least=0.9)
    (record, _) = one.records.values()
    assert "before this trial could begin" in record.error.message


def test_money_that_runs_out_while_backbones_load_is_not_overspent(study: Any) -> None:
    one = study(two(work=lambda node: Work(load=500.0)), **MONEY)
    one.run()
    keeps(one, least=0.8)


def test_money_may_run_out_with_cohorts_waiting(study: Any) -> None:
    one = study(two(), methods=("bitfit", "ia3", "lora", "full"), limit_dollars=45.0, price_per_hour=2 * HOUR)
    one.run()
    assert set(one.ends()) <= {"done", "budget"}
    keeps(one, least=0.6)


def test_a_lost_machine_is_paid_until_it_is_lost_and_its_cohort_goes_on_with_the_other(study: Any) -> None:
    one = study(
        two(leaves={"b": 23.0}, work=lambda node: Work(train=30.0)), limit_dollars=1000.0, price_per_hour=2 * HOUR
    )
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one)
    sums = one.ledger.totals().by_category
    assert 0 < sums["failure"] <= 10  # since its checkpoint, which comes every ten seconds
    on_b = sum(piece.seconds for piece in one.ledger.pieces()[0] if piece.price_per_hour == 2 * HOUR)
    assert on_b == pytest.approx(23.0, abs=1.0)


def test_a_machine_that_joins_is_used_where_nothing_was_promised_without_it(study: Any) -> None:
    late = two(joins={"b": 20.0}, work=lambda node: Work(train=20.0))
    one = study(late, methods=("bitfit", "ia3", "lora", "full"))  # no budget
    one.run()
    assert {worker.node.identifier for worker, _ in late.lives} == {"a", "b"}
    # with a budget the cohort that runs was told that it shares with nobody: the new machine waits until it has ended
    late = two(joins={"b": 20.0}, work=lambda node: Work(train=20.0))
    one = study(late, methods=("bitfit", "ia3", "lora", "full"), **MONEY)
    one.run()
    keeps(one)


def test_a_cluster_that_others_pay_for_costs_what_cohorts_use(study: Any) -> None:
    one = study(two(work=lambda node: Work(train=10.0)), idle=False, **MONEY)
    one.run()
    sums = {category: seconds for category, seconds in one.ledger.totals().by_category.items() if seconds}
    assert sums == {"load": pytest.approx(6.0), "tune": pytest.approx(20.0)}
    one = study(two(), idle=False, **MONEY)
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one, least=0.8)


def test_no_method_pays_for_what_another_one_leaves_idle(study: Any) -> None:
    work = {"a": Work(train=math.inf), "b": Work(train=1.0)}
    one = study(two(work=lambda node: work[node.identifier]), limit_seconds=60.0, per="method")
    one.ledger.methods = ("bitfit", "ia3")
    one.run()
    for method in one.ledger.methods:
        assert one.ledger.spent_seconds(method) <= 60.0
    assert max(one.ledger.spent_seconds(method) for method in one.ledger.methods) > 45.0


def test_a_cluster_without_a_shared_folder_is_refused_at_the_start(study: Any, tmp_path: Path) -> None:
    one = study(two(missing=tmp_path / "backbone"))
    with pytest.raises(
        UserError, match=r"the machine a does not see .*backbone: .*same path on every machine"
    ) as caught:
        one.run()
    assert caught.value.hint is not None
    assert "--output" in caught.value.hint
    assert one.records == {}
    one.engine.close()
