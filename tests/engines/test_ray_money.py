"""A study's money on a cluster with a simulated clock: whatever starts, loads, waits or is lost."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest
from simulated_cluster import ActorDiedError, SimulatedCluster, SimulatedStudy, Work

from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.ray import LOSSES, _Run
from dollartune.engines.ray_cluster import Node
from dollartune.errors import UserError
from dollartune.study_file import load_study
from dollartune.train.progress import Validation
from dollartune.trials.record import RECORD_VERSION, record_of

HOUR = 3600.0
CLOSING = 1.0
"""Seconds that the engine keeps for closing its books: measured elsewhere, as they depend on how busy a machine is."""


@pytest.fixture(autouse=True)
def closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dollartune.engines.ray.closing_seconds", lambda: CLOSING)


@pytest.fixture
def study(study_of: Any, tmp_path: Path) -> Any:
    def make(cluster: SimulatedCluster, methods: Any = ("bitfit", "ia3"), **ledger: Any) -> Any:
        settings = load_study(study_of(methods=list(methods), seeds=1, engine={"name": "ray"}))
        return SimulatedStudy(settings, cluster, tmp_path / "trials", **ledger)

    return make


def two(**changes: Any) -> SimulatedCluster:
    """Two machines with room for one worker each, at 1 and 2 dollars per second."""
    return SimulatedCluster([Node("a", "a", 1, 1 * HOUR), Node("b", "b", 1, 2 * HOUR)], **changes)


def keeps(one: SimulatedStudy, least: float = 0.0) -> None:
    """It has spent no more than its limit, and at least that part of it; each second is booked once."""
    spent, limit = one.ledger.spent_dollars(), one.ledger.limit_dollars
    assert limit is not None
    assert least * limit <= spent <= limit
    pieces = one.ledger.pieces()[0]
    assert len({(piece.session, piece.number) for piece in pieces}) == len(pieces)


MONEY: dict[str, Any] = {"limit_dollars": 180.0, "price_per_hour": 2 * HOUR}


def test_one_budget_holds_for_machines_of_unlike_prices(study: Any) -> None:
    one = study(two(), **MONEY)
    one.run()
    assert one.ends() == ["done", "done"]
    assert {piece.price_per_hour for piece in one.ledger.pieces()[0] if piece.seconds} == {1 * HOUR, 2 * HOUR}
    keeps(one, least=0.85)


def test_workers_may_be_done_a_moment_after_their_limit(study: Any) -> None:
    one = study(two(work=lambda node: Work(late=0.9 * CLOSING)), **MONEY)
    one.time_limit = lambda cohort, costs: TimeLimit(math.inf)  # the engine's own bound alone
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one, least=0.8)


def test_work_alone_is_booked(study: Any) -> None:
    # b is done after 3 seconds of training and waits; both take five seconds to start
    one = study(two(work=lambda node: Work(train=30.0 if node.identifier == "a" else 3.0)), **MONEY)
    one.run()
    sums = {category: seconds for category, seconds in one.ledger.totals().by_category.items() if seconds}
    assert sums == {"load": pytest.approx(6.0), "tune": pytest.approx(33.0)}


def test_money_that_runs_out_while_backbones_load_is_not_overspent(study: Any) -> None:
    one = study(two(work=lambda node: Work(load=500.0)), **MONEY)
    one.run()
    assert one.ends() == ["budget", "budget"]
    keeps(one, least=0.8)


def test_money_may_run_out_with_cohorts_waiting(study: Any) -> None:
    late = two(work=lambda node: Work(late=0.9 * CLOSING))
    one = study(late, methods=("bitfit", "ia3", "lora", "full"), **MONEY)
    one.time_limit = lambda cohort, costs: TimeLimit(math.inf)
    one.run()
    assert one.ends() == ["done", "done", "budget", "budget"]
    keeps(one, least=0.8)


def test_nothing_is_begun_without_money(study: Any) -> None:
    one = study(two(), limit_seconds=60.0)
    one.ledger.add("load", 60.0 - 0.9 * CLOSING)
    one.run()
    assert one.ends() == ["budget", "budget"]
    assert one.cluster.used == []
    assert all("before this trial could begin" in record.error.message for record in one.records.values())


@pytest.mark.parametrize("moment", [23.0, 23.2], ids=["at a look", "between two"])
def test_a_lost_machine_is_paid_until_it_is_lost_and_its_cohort_goes_on_with_the_other(
    study: Any, moment: float
) -> None:
    one = study(
        two(leaves={"b": moment}, work=lambda node: Work(train=30.0)), limit_dollars=1000.0, price_per_hour=2 * HOUR
    )
    one.run()
    assert one.ends() == ["done", "done"]
    keeps(one)
    sums = one.ledger.totals().by_category
    assert 0 < sums["failure"] <= 10  # since its checkpoint, which comes every ten seconds
    on_b = sum(piece.seconds for piece in one.ledger.pieces()[0] if piece.price_per_hour == 2 * HOUR)
    assert on_b == pytest.approx(23.0 - 5.0, abs=1.0)  # it took five to start


def test_what_a_lost_attempt_has_spent_is_not_given_to_the_next(study: Any) -> None:
    only = SimulatedCluster([Node("a", "a", 1, HOUR), Node("b", "b", 1, HOUR)], leaves={"a": 40.0}, joins={"b": 40.0})
    one = study(only, methods=("bitfit",), limit_dollars=100.0, price_per_hour=HOUR)
    one.run()
    assert one.ends() == ["done"]
    assert only.used == ["a", "b"]
    keeps(one, least=0.9)


def test_the_next_attempt_is_told_what_the_lost_one_paid_for(study: Any) -> None:
    only = SimulatedCluster([Node("a", "a", 1, HOUR), Node("b", "b", 1, HOUR)], leaves={"a": 40.0}, joins={"b": 40.0})
    one = study(only, methods=("bitfit",), limit_dollars=100.0, price_per_hour=HOUR)
    one.run()
    (trial,), (first, second) = one.trials, only.jobs
    assert first.earlier == []
    # what it told, until its last checkpoint, and what ran since then; without loading, which is nobody's
    assert {piece.category for piece in second.earlier} == {"tune", "failure"}
    assert {piece.trial for piece in second.earlier} == {trial.identifier}
    assert sum(piece.seconds for piece in second.earlier) == pytest.approx(40.0 - 5.0 - 3.0, abs=1.0)


def test_a_validation_that_is_made_again_after_a_loss_is_shown_once(study: Any) -> None:
    one = study(two())
    shown: list[tuple[str, int]] = []
    one.engine.display.validated = lambda trial, validation: shown.append((trial.identifier, validation.step))
    first, second = one.trials
    run = _Run(Cohort((first, second)), one.settings.training)

    def validates(run: _Run, trial: Any, step: int) -> None:
        one.engine.show(run, "validated", trial, Validation(1.0, step, 1.0, 0.5, 0.5))

    for step in (0, 10, 20):
        validates(run, first, step)
    run.losses = LOSSES  # lost once more, they go on one by one
    run.account = object()  # type: ignore[assignment]  # it had begun
    one.engine._lost(run, ActorDiedError("it died"))
    alone = one.engine._waiting
    for step in (10, 20, 30):
        validates(alone[0], first, step)
        validates(alone[1], second, step)
    assert [step for name, step in shown if name == first.identifier] == [0, 10, 20, 30]
    assert [step for name, step in shown if name == second.identifier] == [10, 20, 30]


def test_a_bug_at_a_worker_is_recorded_with_its_stack(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed: pip install 'dollartune[ray]'")
    stack = 'Traceback (most recent call last):\n  File "worker.py", line 7, in train\nValueError: a bug'
    error = exceptions.RayTaskError("run", stack, ValueError("a bug"), "ray::run", 1, "10.0.0.1").as_instanceof_cause()
    one = study(SimulatedCluster([Node("a", "a", 1, HOUR)], work=lambda node: Work(error=error)), methods=("bitfit",))
    monkeypatch.setattr(one.cluster, "exceptions", exceptions)
    one.run()
    (record,) = one.records.values()
    assert (record.error.kind, record.error.message) == ("error", "ValueError: a bug")
    assert 'File "worker.py", line 7, in train' in record.error.traceback
    assert "\x1b" not in record.error.traceback


def test_a_cohort_that_loses_its_process_again_and_again_goes_on_one_by_one(study: Any) -> None:
    one = study(SimulatedCluster([Node("a", "a", 1, HOUR)], work=lambda node: Work(checkpoints=False, crashes=True)))
    one.run(Cohort(tuple(one.trials)))
    assert one.ends() == ["crash", "crash"]
    # both together, then each alone: once, and three times more; after each the process is there again
    assert 3 * 4 <= len(one.cluster.used) <= 3 * 5
    assert one.ledger.totals().by_category["failure"] > 0


def test_a_cohort_that_gets_on_is_not_given_up_however_many_machines_are_lost(study: Any) -> None:
    names = [f"spot {number}" for number in range(8)]
    spot = SimulatedCluster(
        [Node(name, name, 1, HOUR) for name in names],
        leaves={name: 25.0 * (number + 1) for number, name in enumerate(names[:-1])},
        joins={name: 25.0 * number for number, name in enumerate(names)},
        work=lambda node: Work(train=30.0),
    )
    one = study(spot, methods=("bitfit",))
    one.run()
    assert one.ends() == ["done"]
    assert len(spot.used) > 4, "more than Ray repeats a call"


def test_workers_that_were_lost_while_they_had_no_work_take_no_cohort_down(study: Any) -> None:
    cluster = SimulatedCluster([Node("a", "a", 6, HOUR)], work=lambda node: Work(train=5.0))
    one = study(cluster, methods=[f"lora(rank={rank})" for rank in range(1, 8)])
    *first, last = (Cohort((trial,)) for trial in one.trials)
    one.engine.run(first)
    for worker in list(cluster.workers):
        cluster.lose(worker)
    one.engine.run([last])
    one.engine.close()
    assert one.ends() == ["done"] * 7
    assert len(cluster.used) == 7, "the others were not tried one after the other"


@pytest.mark.parametrize("purpose", ["final", "evaluate"])
def test_a_cohort_whose_worker_is_lost_after_its_last_record_is_done(study: Any, purpose: Any) -> None:
    one = study(two(work=lambda node: Work(train=5.0, crashes_at_end=True)))
    if purpose == "evaluate":
        one.records = {trial.identifier: "tried" for trial in one.trials}
    one.time_limit = lambda cohort, costs: TimeLimit(math.inf)
    one.run(*(Cohort((trial,), purpose) for trial in one.trials))
    assert one.ends() == ["done", "done"]
    assert len(one.cluster.jobs) == 2, "none was begun again"


def test_a_machine_that_joins_is_used(study: Any) -> None:
    late = two(joins={"b": 20.0}, work=lambda node: Work(train=20.0))
    one = study(late, methods=("bitfit", "ia3", "lora", "full"), **MONEY)
    one.run()
    assert set(late.used) == {"a", "b"}
    keeps(one)


def test_a_study_waits_for_machines_but_not_for_ever(study: Any) -> None:
    gone = {"a": 20.0, "b": 20.0}
    machines = [*two().machines, Node("c", "c", 1, HOUR)]
    one = study(SimulatedCluster(machines, lambda node: Work(train=30.0), gone, joins={"c": 200.0}))
    one.run()
    assert one.ends() == ["done", "done"]
    one = study(two(leaves=gone))
    with pytest.raises(UserError, match="for 10 minutes the cluster has had no machine with room"):
        one.run()
    assert 600.0 <= one.cluster.now - 20.0 <= 605.0
    one.engine.close()


def test_machines_that_went_while_nothing_ran_are_waited_for_too(study: Any) -> None:
    machines = [Node("a", "a", 1, HOUR), Node("b", "b", 1, HOUR)]
    one = study(SimulatedCluster(machines, lambda node: Work(train=5.0), {"a": 700.0}, joins={"b": 800.0}))
    first, second = (Cohort((trial,)) for trial in one.trials)
    one.engine.run([first])
    one.cluster.now = 710.0  # the study did something else
    one.engine.run([second])
    one.engine.close()
    assert one.ends() == ["done", "done"]


def test_a_record_that_cannot_be_written_costs_its_trial_and_not_the_study(study: Any) -> None:
    one = study(two(work=lambda node: Work(train=5.0)))
    writes, full = one.leave, [OSError(errno.ENOSPC, "No space left on device")]

    def leave(trial: Any, record: Any, predictions: Any = ()) -> None:
        if full:
            raise full.pop()
        writes(trial, record, predictions)

    one.leave = leave
    one.run()
    assert sorted(one.ends()) == ["done", "environment"]


def test_no_method_pays_for_what_another_one_spends(study: Any) -> None:
    work = {"a": Work(train=math.inf), "b": Work(train=1.0)}
    one = study(two(work=lambda node: work[node.identifier]), limit_seconds=60.0, per="method")
    one.ledger.methods = ("bitfit", "ia3")
    one.run()
    for method in one.ledger.methods:
        assert one.ledger.spent_seconds(method) <= 60.0
    assert max(one.ledger.spent_seconds(method) for method in one.ledger.methods) > 45.0


def test_an_adapter_of_a_search_trial_that_is_evaluated_gets_its_record(study: Any) -> None:
    one = study(two(work=lambda node: Work(train=5.0)))
    one.records = {trial.identifier: "tried" for trial in one.trials}
    one.time_limit = lambda cohort, costs: TimeLimit(math.inf)
    one.run(*(Cohort((trial,), "evaluate") for trial in one.trials))
    assert one.ends() == ["done", "done"]


def test_what_was_tuned_stays_where_its_evaluation_takes_each_process_down(study: Any) -> None:
    one = study(SimulatedCluster([Node("a", "a", 1, HOUR)], work=lambda node: Work(crashes=True)), methods=("bitfit",))
    (trial,) = one.trials
    tuned = {
        "id": trial.identifier,
        "status": "tried",
        "trial": trial.to_json(),
        "validation": {"score": 0.9, "examples": 10},
    }
    one.records = {trial.identifier: record_of({"version": RECORD_VERSION, **tuned})}
    one.time_limit = lambda cohort, costs: TimeLimit(math.inf)
    one.run(Cohort((trial,), "evaluate"))
    record = one.records[trial.identifier]
    assert (record.validation.score, record.error.kind) == (0.9, "crash")


def test_a_cluster_without_a_shared_folder_is_refused_at_the_start(study: Any, tmp_path: Path) -> None:
    one = study(two(missing=tmp_path / "backbone"))
    with pytest.raises(
        UserError, match=r"the machine [ab] does not see .*backbone: .*same path on every machine"
    ) as caught:
        one.run()
    assert caught.value.hint is not None
    assert "--output" in caught.value.hint
    assert one.records == {}
    one.engine.close()
