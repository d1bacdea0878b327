"""A study on a cluster of two machines (two of Ray's nodes on this one): the records of the local engine, whatever is lost."""

import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.ledger import Ledger
from dollartune.config import EngineSettings
from dollartune.engines import ray_worker
from dollartune.engines.display import Display
from dollartune.engines.ray import LOSSES, RayEngine
from dollartune.engines.ray_worker import RayWorker
from dollartune.study.api import Study
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.progress import Validation
from dollartune.trials.record import TrialRecord
from dollartune.trials.trial import Trial

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dollartune[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

HEAD_PRICE, NODE_PRICE = 2.0, 3.5


def machine(price: float) -> dict[str, Any]:
    """What one of Ray's nodes is started with. Ports are given because a node gives up soon if it has to wait for those
    that its helpers choose, which on a busy machine come late."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    for one in sockets:
        one.close()
    labels = {"dollartune-price": str(price)}
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, "labels": labels, **ports}


class Machines:
    """A head and one further machine, each with room for one cohort; the further one can be lost and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_worker_niceness", "0")  # by default anything else on this machine goes before them
        # A lost machine is missed after five vain calls, which are 3 s apart by default: too long for a test. How long a
        # busy machine may take to answer one stays at 10 s.
        often = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
        head = {**machine(HEAD_PRICE), "include_dashboard": False, "_system_config": often}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.other: Any = None
        self.complete()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def complete(self) -> None:
        """Adds the further machine, if it was lost."""
        if self.other is None:
            self.other = self.cluster.add_node(**machine(NODE_PRICE))

    def lose(self) -> None:
        """The further machine is gone, without a goodbye."""
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = None


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    found = Machines()
    yield found
    if ray.is_initialized():
        ray.shutdown()
    found.cluster.shutdown()


@pytest.fixture
def study_on(study_of: Any, machines: Machines, tmp_path: Path) -> Callable[..., Study]:
    """A study on the cluster, or on the local engine; keyword arguments change it."""
    machines.complete()

    def make(engine: str = "ray", **changes: Any) -> Study:
        chosen = {"name": "ray", "address": machines.address} if engine == "ray" else "local"
        quick = {"rows": 8, "free_generation": False, "inference_cost": False, "forgetting": False}
        return Study(study_of(**{"output": str(tmp_path / engine), "engine": chosen, "evaluation": quick, **changes}))

    return make


class Counting(Display):
    """Counts what is recorded and remembers notes."""

    def __init__(self) -> None:
        self.records: Counter[str] = Counter()
        self.notes: list[str] = []
        self.validations: Counter[str] = Counter()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def validated(self, trial: Trial, validation: Validation) -> None:
        self.validations[trial.identifier] += 1

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        self.records[trial.identifier] += 1


TIMES = ("cost", "environment", "memory", "inference", "promise")


def facts(study: Study) -> dict[str, Any]:
    """Per trial everything but times: scores, predictions, losses, adapters."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k and k not in TIMES}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    found = {}
    for record in study.store.records():
        folder = study.store.folder(record.id)
        weights = folder / "adapter" / "adapter.safetensors"
        found[record.id] = {
            "record": timeless(record.to_json()),
            "predictions": study.store.predictions(record.id),
            "adapter": weights.read_bytes() if weights.exists() else None,
        }
    return found


def same(study: Study, other: Study) -> None:
    """Both have the same trials with the same facts."""
    mine, theirs = facts(study), facts(other)
    assert mine.keys() == theirs.keys()
    for name, found in mine.items():
        for key, value in found["record"].items():
            assert value == theirs[name]["record"][key], (found["record"]["trial"]["label"], key)
        assert found == theirs[name], found["record"]["trial"]["label"]


def ledger(study: Study) -> list[dict[str, Any]]:
    return [json.loads(line) for line in study.store.ledger.read_text().splitlines() if '"number"' in line]


def booked(study: Study, price: float) -> float:
    """Seconds booked at a machine's price."""
    return sum(piece["seconds"] for piece in ledger(study) if piece["price_per_hour"] == price)


def nothing_twice(study: Study, display: Counting, elapsed: float) -> None:
    """Each trial was recorded once, each piece of time has a name of its own, no machine worked longer than it was there."""
    planned = study.store.planned()
    assert planned is not None
    assert display.records == Counter(planned)
    pieces = ledger(study)
    assert len({(piece["session"], piece["number"]) for piece in pieces}) == len(pieces)
    assert 0 < booked(study, HEAD_PRICE) <= elapsed + 1.0
    assert 0 < booked(study, NODE_PRICE) <= elapsed + 1.0


def test_a_study_of_24_trials_gives_the_records_of_the_local_engine(study_on: Callable[..., Study]) -> None:
    changes: dict[str, Any] = {
        "seeds": 4, "scales": [8, 16], "training": {"epochs": 1, "batch_size": 8, "cohort_size": 4},
        "keep_adapters": "all",
        "methods": ["bitfit", "ia3", "lora(rank=2, dropout=0.1)"],
    }  # fmt: skip
    local = study_on("local", **changes)
    local.run(display=Display())
    display, study = Counting(), study_on(**changes)
    started = time.monotonic()
    results = study.run(display=display)
    elapsed = time.monotonic() - started
    assert len(results.done()) == 24
    same(study, local)
    nothing_twice(study, display, elapsed)
    for record in results.done():
        assert record.training is not None
        assert display.validations[record.id] == len(record.training.history)
        assert record.cost.price_per_hour in (HEAD_PRICE, NODE_PRICE)
        assert record.cost.dollars == pytest.approx(record.cost.seconds * record.cost.price_per_hour / 3600)
    assert study.run(display=Counting()).records == results.records  # nothing is left to do


LONGER: dict[str, Any] = {
    "methods": ["bitfit", "lora(rank=2, dropout=0.1)", "prompt(tokens=2)"], "seeds": 2, "keep_adapters": "all",
    "training": {"epochs": 20, "batch_size": 4, "cohort_size": 2, "patience": None},
}  # fmt: skip
"""Some seconds of training, in which a machine can be lost."""


@pytest.fixture(scope="module")
def local_outcomes() -> list[Study]:
    """The study of `LONGER` on the local engine, once it was run."""
    return []


@pytest.fixture
def longer_here(
    study_on: Callable[..., Study], local_outcomes: list[Study], tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """What `LONGER` comes to on the local engine; it is run for the first test that asks."""
    if not local_outcomes:
        study = study_on("local", **LONGER, output=str(tmp_path_factory.mktemp("local")))
        study.run(display=Display())
        local_outcomes.append(study)
    return local_outcomes[0]


def at_workers(monkeypatch: pytest.MonkeyPatch, **replaced: Any) -> None:
    """In the workers' processes these names of `engines.ray_worker` stand for something else."""

    class Changed(RayWorker):
        def __init__(self, *arguments: Any) -> None:
            for name, value in replaced.items():
                setattr(ray_worker, name, value)
            super().__init__(*arguments)

    monkeypatch.setattr("dollartune.engines.ray.RayWorker", Changed)


@pytest.fixture
def on_checkpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Checkpoints come often, and after each a function is called with the driver's view of the cohort."""

    def install(call: Callable[[Any], None]) -> None:
        book = RayEngine.book

        def then(self: RayEngine, run: Any, pieces: Any, failed: Any, saved: bool) -> None:
            book(self, run, pieces, failed, saved)
            if saved:
                call(run)

        at_workers(monkeypatch, Checkpoints=partial(Checkpoints, every_seconds=0.2))
        monkeypatch.setattr(RayEngine, "book", then)

    return install


def test_a_process_that_dies_is_tried_again_and_then_recorded(
    study_on: Callable[..., Study], on_checkpoint: Any
) -> None:
    losses_before = {"ia3": 0, "bitfit": LOSSES}
    victims: Counter[str] = Counter()

    def kill(run: Any) -> None:
        group = run.cohort.trials[0].variant.group
        if not victims[group]:
            victims[group] += 1
            run.losses = losses_before[group]  # as if it had not got further since
            ray.kill(run.worker)  # the process ends, as in a crash

    on_checkpoint(kill)
    changes = {**LONGER, "methods": ["ia3", "bitfit"], "seeds": 1, "training": {**LONGER["training"], "cohort_size": 1}}
    display, study = Counting(), study_on(**changes)
    results = study.run(display=display)
    found = {record.trial.label: record for record in results.records}
    assert victims == {"ia3": 1, "bitfit": 1}
    assert found["ia3"].status == "done"
    assert found["bitfit"].error.kind == "crash"
    assert found["bitfit"].cost.seconds > 0
    assert display.records == Counter(study.store.planned())


def test_ctrl_c_leaves_records_and_checkpoints_and_the_local_engine_goes_on(
    study_on: Callable[..., Study], longer_here: Study, on_checkpoint: Any
) -> None:
    seen = []

    def interrupt(run: Any) -> None:
        seen.append(run)
        if len(seen) == 3:
            raise KeyboardInterrupt

    on_checkpoint(interrupt)
    study = study_on(**LONGER)
    with pytest.raises(KeyboardInterrupt):
        study.run(display=Display())
    assert list(study.store.root.glob("trials/*/checkpoint/*.json"))
    assert not (study.store.root / "ledger.jsonl.open").exists()
    again = Study(study.settings.model_copy(update={"engine": EngineSettings()}))
    again.run(display=Display())
    same(again, longer_here)


def ends(study: Study) -> list[str]:
    """What ended each trial."""
    return [record.stopped if record.error is None else record.error.kind for record in study.store.records()]


def dollars(pieces: list[dict[str, Any]]) -> float:
    return sum(piece["seconds"] * piece["price_per_hour"] / 3600 for piece in pieces)


class ReadingClock:
    """The clock of a worker's ledger: each look at it is some seconds later. A training step looks at it a few times, so a
    budget of simulated seconds ends after the same work on every machine, however busy it is."""

    def __init__(self, seconds_per_reading: float) -> None:
        self.seconds_per_reading, self.now = seconds_per_reading, 0.0

    def __call__(self) -> float:
        self.now += self.seconds_per_reading
        return self.now


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Workers have such a clock, and the driver's stands still: neither its own start is held against the budget, nor how long a
    busy machine takes until a worker tells of itself."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test

    def install(seconds_per_reading: float) -> None:
        at_workers(monkeypatch, Ledger=partial(Ledger, clock=ReadingClock(seconds_per_reading)))
        monkeypatch.setattr("dollartune.budget.study_budget.Ledger", partial(Ledger, clock=lambda: 0.0))
        monkeypatch.setattr("dollartune.study.startup.starting", lambda *_: nullcontext())

    return install


def limited(study_on: Callable[..., Study], seconds: float) -> tuple[Study, float]:
    """A study that would train for ever, with so many simulated seconds of the head's machine, in dollars."""
    limit = seconds * HEAD_PRICE / 3600
    study = study_on(
        methods=["bitfit", "ia3"], seeds=1, training={"epochs": 100_000, "batch_size": 4, "patience": None},
        budget={"dollars": limit, "per": "study", "price": f"{HEAD_PRICE}/h"}, search=False,
    )  # fmt: skip
    return study, limit


def test_a_budget_holds_for_all_machines_together(
    study_on: Callable[..., Study], reads: Callable[[float], None]
) -> None:
    reads(0.1)
    study, limit = limited(study_on, 60)
    study.run(display=Display())
    assert ends(study) == ["budget"] * 2
    assert all(record.status == "done" for record in study.store.records())
    assert {piece["price_per_hour"] for piece in ledger(study) if piece["category"] == "tune"} == {
        HEAD_PRICE,
        NODE_PRICE,
    }
    assert 0.5 * limit <= dollars(ledger(study)) <= limit


def test_a_machine_lost_in_the_middle_costs_only_the_work_since_its_checkpoint(
    study_on: Callable[..., Study], longer_here: Study, machines: Machines, on_checkpoint: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lost: list[Any] = []
    saved: set[Any] = set()
    on_checkpoint(saved.add)
    listen = RayEngine._listen

    def lose(self: RayEngine) -> None:
        listen(self)
        for run in saved & set(self._running.values()):
            if lost or run.account is None or run.account.price_per_hour != NODE_PRICE:
                continue
            if sum(piece.seconds for piece in run.account.running()) > 0.05:
                lost.append(run)  # it has trained since its checkpoint
                machines.lose()

    monkeypatch.setattr(RayEngine, "_listen", lose)
    display, study = Counting(), study_on(**LONGER)
    started = time.monotonic()
    results = study.run(display=display)
    elapsed = time.monotonic() - started
    assert len(lost) == 1
    assert len(results.done()) == len(results.records) == 6
    same(study, longer_here)
    nothing_twice(study, display, elapsed)
    for record in results.done():
        assert record.training is not None
        assert display.validations[record.id] == len(record.training.history), "those after its checkpoint came again"
    pieces = ledger(study)
    failures = [piece for piece in pieces if piece["category"] == "failure"]
    assert failures
    assert {piece["price_per_hour"] for piece in failures} <= {NODE_PRICE}
    trials = {trial.identifier for trial in lost[0].cohort.trials}
    kept = [p for p in pieces if p["category"] == "tune" and p["trial"] in trials]
    assert {piece["price_per_hour"] for piece in kept} == {HEAD_PRICE, NODE_PRICE}  # it went on, and did not begin anew
    assert not list(study.store.root.glob("trials/*/*checkpoint*"))
