"""The parts of the Ray engine that need no cluster: who is reached, what machines cost, what travels, what is tried again."""

import pickle
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dollartune.budget.ledger import BudgetSpent, Ledger
from dollartune.config import EngineSettings
from dollartune.engines import ray_cluster as cluster_module
from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.payload import packed_splits, packed_task, shared_paths, whole_paths
from dollartune.engines.ray_cluster import Cluster
from dollartune.engines.ray_retry import CRASHES, LOSSES, Attempt, GiveUp, next_attempts
from dollartune.engines.ray_worker import Connection
from dollartune.engines.select_engine import cluster_of
from dollartune.errors import UserError
from dollartune.study_file import load_study
from dollartune.tasks.mixture import MixedRows, Mixture
from dollartune.tasks.registry import load_task
from dollartune.train.settings import TrainingSettings

# Reaching a cluster


def on_ray(study_of: Any, **engine: Any) -> Any:
    return load_study(study_of(engine={"name": "ray", **engine}))


def test_without_ray_it_says_what_to_install(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="not installed") as caught:
        cluster_of(on_ray(study_of))
    assert caught.value.hint == "pip install 'dollartune[ray]'"
    assert cluster_of(load_study(study_of())) is None  # the default needs none


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nobody_answers_is_refused_at_once(study_of: Any, scheme: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dollartune[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UserError, match=f"nobody answers at '{scheme}127.0.0.1:{port}'"):
        cluster_of(on_ray(study_of, address=f"{scheme}127.0.0.1:{port}"))
    assert time.monotonic() - started < 30
    with pytest.raises(UserError, match=r"'nonsense' is not the address of a Ray cluster"):
        cluster_of(on_ray(study_of, address="nonsense"))


def test_the_command_line_names_engines(study_of: Any) -> None:
    from dollartune.cli.run import _on_engine

    settings = load_study(study_of(engine={"name": "ray", "gpus": 0.5}))
    assert _on_engine(settings, "local", None).engine == EngineSettings(name="local", gpus=0.5)
    assert _on_engine(settings, None, None) is settings
    plain = load_study(study_of())
    assert _on_engine(plain, None, "auto").engine == EngineSettings(name="ray", address="auto")
    with pytest.raises(UserError, match=r"unknown engine 'rai'\. Did you mean 'ray'\?"):
        _on_engine(plain, "rai", None)
    with pytest.raises(UserError, match=r"unknown key 'engine\.adress'\. Did you mean 'address'\?"):
        load_study(study_of(engine={"name": "ray", "adress": "auto"}))


def test_an_engine_is_no_part_of_a_trial(study_of: Any) -> None:
    from dollartune.trials.expand import plan

    here, there = plan(load_study(study_of()))[0], plan(on_ray(study_of, gpus=0.25))[0]
    assert [trial.identifier for trial in here] == [trial.identifier for trial in there]


# Machines


class FakeRay:
    """Ray with made-up machines: (CPUs, GPUs, labels) each."""

    def __init__(self, *machines: tuple[float, float, dict[str, str]]) -> None:
        self.machines = machines

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": f"n{index}", "NodeManagerAddress": f"10.0.0.{index}", "Alive": True, "Labels": labels,
                "Resources": {"CPU": cpus, "GPU": gpus},
            }
            for index, (cpus, gpus, labels) in enumerate(self.machines)
        ]  # fmt: skip


def cluster(monkeypatch: pytest.MonkeyPatch, *machines: Any, price: float = 0.0, **settings: Any) -> Cluster:
    monkeypatch.setattr(cluster_module, "_import_ray", lambda: FakeRay(*machines))
    return Cluster(EngineSettings(name="ray", **settings), price)


@pytest.mark.parametrize(
    ("machine", "settings", "slots"),
    [
        ((8, 0, {}), {}, 8),
        ((8, 0, {}), {"cpus": 3.0}, 2),
        ((8, 4, {}), {}, 4),  # a GPU each by default
        ((8, 4, {}), {"gpus": 0.25}, 8),  # processor cores are short
        ((64, 4, {}), {"gpus": 0.25}, 16),
        ((64, 4, {}), {"gpus": 0.4}, 8),  # a part of a GPU lies on one GPU
        ((64, 4, {}), {"gpus": 2.0}, 2),
        ((64, 4, {}), {"gpus": 0.0}, 64),
    ],
)
def test_how_many_cohorts_a_machine_has_room_for(
    monkeypatch: pytest.MonkeyPatch, machine: Any, settings: dict[str, Any], slots: int
) -> None:
    (node,) = cluster(monkeypatch, machine, **settings).nodes().values()
    assert node.slots == slots


def test_no_room_anywhere_is_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cohort of 1 CPUs and 2 GPUs; they have: 8 CPUs, 1 GPUs; 0 CPUs, 0 GPUs"):
        cluster(monkeypatch, (8, 1, {}), (0, 0, {}), gpus=2.0)


def test_prices_are_read_off_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(
        monkeypatch, (4, 0, {"dollartune-price": "2.49"}), (2, 0, {"dollartune-machine": "h100"}), (2, 0, {}), (0, 0, {}),
        price=1.5,
    )  # fmt: skip
    prices = [node.price_per_hour for node in found.nodes().values()]
    assert prices[0] == 2.49
    assert prices[1] > 0
    assert prices[2:] == [1.5, 0.0]  # a machine without room costs what its label says
    assert found.slot_price == max(2.49 / 4, prices[1] / 2, 1.5 / 2)
    with pytest.raises(UserError, match=r"machine 10\.0\.0\.0 of the cluster: 'cheap' is not a price"):
        cluster(monkeypatch, (4, 0, {"dollartune-price": "cheap"}))


# What follows when an attempt ends without a result

ERRORS = SimpleNamespace(
    RayTaskError=type("RayTaskError", (Exception,), {}),
    OutOfMemoryError=type("OutOfMemoryError", (Exception,), {}),
    NodeDiedError=type("NodeDiedError", (Exception,), {}),
    ActorDiedError=type("ActorDiedError", (Exception,), {}),
)


def cohort_of(*names: str) -> Any:
    return Cohort(tuple(SimpleNamespace(identifier=name) for name in names))  # type: ignore[arg-type]


def next_of(attempt: Attempt, error: Exception, lives: bool = True) -> Any:
    return next_attempts(attempt, error, ERRORS, lives)


def test_a_lost_machine_is_no_fault_of_the_cohort_unless_it_happens_again_and_again() -> None:
    attempt = Attempt(cohort_of("a", "b"), TrainingSettings())
    for _ in range(LOSSES):
        before = attempt.identifier
        (attempt,) = next_of(attempt, ERRORS.NodeDiedError("gone"), lives=False)
        assert attempt.identifier != before  # what the earlier one still says does not count
        assert attempt.cohort.trials[0].identifier == "a"
    assert next_of(attempt, ERRORS.NodeDiedError("gone")) == GiveUp(
        "machine_lost", "4 machines were lost one after the other while they ran this cohort."
    )
    attempt.saved = True  # it got further
    (attempt,) = next_of(attempt, ERRORS.ActorDiedError("gone"), lives=False)
    assert (attempt.losses, attempt.saved) == (1, False)


def test_a_cohort_whose_process_dies_twice_goes_on_one_by_one() -> None:
    (whole,) = next_of(Attempt(cohort_of("a", "b"), TrainingSettings()), ERRORS.ActorDiedError("killed"))
    assert len(whole.cohort.trials) == 2  # once more as it was
    alone = next_of(whole, ERRORS.ActorDiedError("killed"))
    assert [[trial.identifier for trial in one.cohort.trials] for one in alone] == [["a"], ["b"]]
    attempt = alone[1]
    for _ in range(CRASHES - 1):
        (attempt,) = next_of(attempt, ERRORS.ActorDiedError("killed"))
    given_up = next_of(attempt, ERRORS.ActorDiedError("killed"))
    assert isinstance(given_up, GiveUp)
    assert given_up.kind == "crash"


def test_memory_that_the_machine_runs_out_of_is_tried_with_smaller_passes_then_alone() -> None:
    attempt = Attempt(cohort_of("a", "b"), TrainingSettings(batch_size=4))
    sizes = []
    while len(found := next_of(attempt, ERRORS.OutOfMemoryError("killed"))) == 1:
        (attempt,) = found
        sizes.append(attempt.training.micro_batch_size)
    assert sizes == [2, 1]
    last = next_of(found[0], ERRORS.OutOfMemoryError("killed"))
    assert isinstance(last, GiveUp)
    assert last.kind == "out_of_memory"


def test_a_bug_is_recorded_and_a_machine_without_dollartune_ends_the_study() -> None:
    error = ERRORS.RayTaskError()
    error.cause = ValueError("a bug")
    assert next_of(Attempt(cohort_of("a"), TrainingSettings()), error) == GiveUp("error", "ValueError: a bug")
    error = ERRORS.ActorDiedError("The actor died:\nModuleNotFoundError: No module named 'dollartune'")
    with pytest.raises(UserError, match="cannot import dollartune: ModuleNotFoundError: No module named"):
        next_of(Attempt(cohort_of("a"), TrainingSettings()), error)


# What travels


def test_pictures_travel_with_their_rows(tmp_path: Path) -> None:
    for label, red, blue in (("red", 255, 0), ("blue", 0, 255)):
        (tmp_path / label).mkdir()
        for number in range(8):
            Image.new("RGB", (4, 4), (red, number, blue)).save(tmp_path / label / f"{number}.png")
    task = load_task({"data": str(tmp_path)})
    splits = task.splits(None, 0, 10)
    sent = pickle.dumps((packed_task(task), packed_splits(splits)))
    assert str(tmp_path).encode() not in sent.replace(task.source.encode(), b"")
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
    packed, rows = pickle.loads(sent)
    assert [row.id for row in rows.train] == [row.id for row in splits.train]
    for row in rows.train:
        red, _, blue = row.fields["image"]().getpixel((0, 0))
        assert (red, blue) == ((255, 0) if row.label == "red" else (0, 255))
    with pytest.raises(RuntimeError, match="stay with the driver"):
        packed.load()


def test_a_mixture_travels_without_the_rows_of_its_parts(moods: Any) -> None:
    other = type(moods)(**{**moods.__dict__, "name": "other"})
    whole = Mixture("both", "generation", MixedRows((moods,), (other,)), parts=(moods,), held_out=(other,))
    packed = pickle.loads(pickle.dumps(packed_task(whole)))
    assert isinstance(packed, Mixture)
    rows = whole.splits(4, 0, 4)
    assert [packed.prompt(row) for row in rows.train] == [whole.prompt(row) for row in rows.train]
    for task in (packed, *packed.parts, *packed.held_out):
        with pytest.raises(RuntimeError, match="stay with the driver"):
            task.load()


def test_a_worker_in_another_folder_reads_the_same_files(
    study_of: Any, local_backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(local_backbone("llama"))
    monkeypatch.chdir(folder.parent)
    settings = whole_paths(load_study(study_of(backbone=folder.name, output="out")))
    assert settings.backbones[0].name == str(folder.resolve())
    assert settings.output == str(folder.parent.resolve() / "out")
    assert shared_paths(settings) == (folder.resolve(),)
    assert (
        shared_paths(whole_paths(load_study(study_of(backbone="tiny-decoder")))) == ()
    )  # an embedded backbone lies in every installation


# What a worker says and is told


class Sent:
    """A queue that keeps what is put into it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.actor = SimpleNamespace(put=SimpleNamespace(remote=self._put))

    def _put(self, event: Any, timeout: None) -> Any:
        self.events.append(event)
        return SimpleNamespace(future=lambda: SimpleNamespace(result=lambda: None))


def connection_of(*recorded: str, limit: float | None) -> tuple[Connection, list[float]]:
    now = [0.0]
    ledger = Ledger(limit_seconds=limit, clock=lambda: now[0])
    settings: Any = SimpleNamespace(training=TrainingSettings(validation_rows=10))
    payload: Any = SimpleNamespace(settings=settings, folder=Path("trials"))
    job: Any = SimpleNamespace(identifier="j", cohort=cohort_of("a", "b", "c"), recorded=frozenset(recorded))
    return Connection(job, payload, ledger, Sent()), now


def test_a_cohort_that_is_tried_again_in_parts_gets_what_is_left_of_its_time_limit() -> None:
    connection, now = connection_of("c", limit=0.0)
    rows: Any = SimpleNamespace(validation=range(10), test=range(10))
    context: Any = SimpleNamespace(splits=rows, seconds_per_row=0.1, seconds_per_validation_row=0.1)
    limits = connection.time_limits(TimeLimit(60.0, 0.2))
    assert limits(connection.job.cohort, context) == TimeLimit(60.0, 0.2)
    with connection.ledger.book("tune"):
        now[0] = 40.0
    assert limits(cohort_of("a"), context) == TimeLimit(10.0, 0.2)  # half of what is left: b waits too
    connection.recorded.add("a")
    assert limits(cohort_of("b"), context) == TimeLimit(20.0, 0.2)
    with connection.ledger.book("tune"):
        now[0] = 58.0
    with pytest.raises(BudgetSpent, match=r"2\.0 s are left for this trial, and evaluating it takes about 2\.8 s"):
        limits(cohort_of("b"), context)


def test_what_is_recorded_is_not_done_again_and_each_event_says_what_was_spent() -> None:
    connection, now = connection_of("c", limit=None)
    assert [connection.has(name) for name in ("a", "c")] == [False, True]
    with connection.ledger.book("tune", trial="a"):
        now[0] = 4.0
        connection.leave(connection.job.cohort.trials[0], "record")  # type: ignore[arg-type]
    assert connection.has("a")
    (event,) = connection.events.events
    assert (event.job, event.trial, event.record) == ("j", "a", "record")
    assert sum(event.spent.seconds.values()) == 4.0


def test_nothing_of_ray_is_imported_unless_it_is_asked_for() -> None:
    import subprocess

    script = (
        "import sys, dollartune.study.runner, dollartune.cli.run\n"
        "assert 'ray' not in sys.modules, 'ray is imported'\n"
        "assert not any(name.startswith('dollartune.engines.ray') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
