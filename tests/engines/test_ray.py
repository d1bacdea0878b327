"""The parts of the Ray engine that need no cluster: who is reached, what machines cost, what travels, what is said."""

import asyncio
import itertools
import pickle
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.journal import Piece
from dollartune.budget.ledger import Ledger
from dollartune.budget.prices import find_price
from dollartune.config import EngineSettings
from dollartune.engines import ray_cluster as cluster_module
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit
from dollartune.engines.display import TrialInTraining
from dollartune.engines.ray import read_by_training, with_whole_paths
from dollartune.engines.ray_cluster import Channel, Cluster
from dollartune.engines.ray_worker import Job, RayWorker, RemoteDriver
from dollartune.engines.record_writer import RecordWriter
from dollartune.engines.select_engine import cluster_of
from dollartune.errors import UserError
from dollartune.study_file import load_study
from dollartune.tasks.mixture import MixedRows, Mixture
from dollartune.tasks.registry import load_task
from dollartune.trials.expand import plan

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
    from dollartune.cli.options import on_engine

    settings = load_study(study_of(engine={"name": "ray", "gpus": 0.5}))
    assert on_engine(settings, "local", None).engine == EngineSettings(name="local", gpus=0.5)
    assert on_engine(settings, None, None) is settings
    plain = load_study(study_of())
    assert on_engine(plain, None, "auto").engine == EngineSettings(name="ray", address="auto")
    with pytest.raises(UserError, match=r"unknown engine 'rai'\. Did you mean 'ray'\?"):
        on_engine(plain, "rai", None)
    with pytest.raises(UserError, match=r"unknown key 'engine\.adress'\. Did you mean 'address'\?"):
        load_study(study_of(engine={"name": "ray", "adress": "auto"}))


def test_an_engine_is_no_part_of_a_trial(study_of: Any) -> None:
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
        ((33, 0, {}), {"cpus": 1.1}, 30),  # 29.999999999999996 by division
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
    with pytest.raises(
        UserError, match=r"1 CPUs and 2 GPUs that a worker asks for; they have: 8 CPUs, 1 GPUs; 0 CPUs, 0 GPUs"
    ):
        cluster(monkeypatch, (8, 1, {}), (0, 0, {}), gpus=2.0)


def test_prices_are_read_off_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(
        monkeypatch, (4, 0, {"dollartune-price": "2.49"}), (2, 0, {"dollartune-machine": "h100"}), (2, 0, {}), (0, 0, {}),
        price=1.5,
    )  # fmt: skip
    prices = [node.slot_price for node in found.nodes().values()]
    assert prices == [2.49 / 4, find_price(None, "h100") / 2, 1.5 / 2], "one without room costs nothing"
    assert found.slot_price == max(prices)
    with pytest.raises(UserError, match=r"machine 10\.0\.0\.0 of the cluster: 'cheap' is not a price"):
        cluster(monkeypatch, (4, 0, {"dollartune-price": "cheap"}))


# What travels


def test_pictures_travel_with_their_rows(tmp_path: Path) -> None:
    for label, red, blue in (("red", 255, 0), ("blue", 0, 255)):
        (tmp_path / label).mkdir()
        for number in range(8):
            Image.new("RGB", (4, 4), (red, number, blue)).save(tmp_path / label / f"{number}.png")
    task = load_task({"data": str(tmp_path)})
    splits = task.splits(None, 0, 10)
    sent = pickle.dumps((task.without_rows(), splits))
    assert str(tmp_path).encode() not in sent.replace(task.source.encode(), b"")
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
    packed, rows = pickle.loads(sent)
    assert [row.id for row in rows.train] == [row.id for row in splits.train]
    for row in rows.train:
        red, _, blue = row.fields["image"]().getpixel((0, 0))
        assert (red, blue) == ((255, 0) if row.label == "red" else (0, 255))
    with pytest.raises(RuntimeError, match="came without its rows"):
        packed.load()


def test_a_mixture_travels_without_the_rows_of_its_parts(moods: Any) -> None:
    other = type(moods)(**{**moods.__dict__, "name": "other"})
    whole = Mixture("both", "generation", MixedRows((moods,), (other,)), parts=(moods,), held_out=(other,))
    packed = pickle.loads(pickle.dumps(whole.without_rows()))
    assert isinstance(packed, Mixture)
    rows = whole.splits(4, 0, 4)
    assert [packed.prompt(row) for row in rows.train] == [whole.prompt(row) for row in rows.train]
    for task in (packed, *packed.parts, *packed.held_out):
        with pytest.raises(RuntimeError, match="came without its rows"):
            task.load()


def test_a_worker_of_another_user_in_another_folder_reads_and_writes_the_same_files(
    study_of: Any, local_backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths that begin with ~, go through a link in the driver's folder, or count from there."""
    backbone, home, own, shared = (
        Path(local_backbone("llama")),
        tmp_path / "home",
        tmp_path / "own",
        tmp_path / "shared",
    )
    for folder in (home, own, shared / "begun"):
        folder.mkdir(parents=True)
    (home / "model").symlink_to(backbone)
    (own / "disk").symlink_to(shared)
    for file in (home / "names.yaml", shared / "text.txt"):
        file.write_text("roles: {}")
    (own / "tiny-decoder").mkdir()  # which is not what the name means
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(own)
    several = [{"name": "~/model", "anatomy": "~/names.yaml"}, {"name": "tiny-decoder"}, {"name": "owner/of-the-hub"}]
    evaluation = {**study_of()["evaluation"], "general_text": "disk/text.txt"}
    asked = load_study(
        study_of(backbone=several, begin_with="disk/begun", output="disk/studies", evaluation=evaluation)
    )
    settings = with_whole_paths(asked)
    monkeypatch.setenv("HOME", "/nowhere")
    RayWorker(settings, (), 0, None, tmp_path / "nowhere", torch.get_num_threads(), 0.0)
    assert Path.cwd() == own, "a folder that is not there is not gone to"
    monkeypatch.chdir(tmp_path)
    (own / "disk").unlink()
    assert [one.name for one in settings.backbones] == [str(backbone.resolve()), "tiny-decoder", "owner/of-the-hub"]
    assert [one.anatomy for one in settings.backbones] == [str((home / "names.yaml").resolve()), None, None]
    assert (settings.begin_with, settings.evaluation.general_text, settings.output) == (
        str((shared / "begun").resolve()), str((shared / "text.txt").resolve()), str((shared / "studies").resolve())
    )  # fmt: skip
    assert set(read_by_training(settings)) == {
        backbone.resolve(), *((folder / name).resolve() for folder, name in (
            (home, "names.yaml"), (shared, "begun"), (shared, "text.txt")
        )),
    }  # fmt: skip


def test_a_relative_path_in_a_method_has_to_be_seen_by_workers(
    study_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver" / "a").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    fusion = {"adapter_fusion": {"adapters": ["a", str(tmp_path / "b")]}}
    settings = with_whole_paths(load_study(study_of(backbone="tiny-decoder", methods=["bitfit", fusion])))
    assert read_by_training(settings) == (tmp_path / "driver" / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    RayWorker(settings, (), 0, None, tmp_path / "driver", torch.get_num_threads(), 0.0)
    assert Path("a").is_dir(), "it counts from the driver's folder"


# What a worker says and is told


def test_the_channel_keeps_the_order_and_each_answer_goes_to_who_asked() -> None:
    async def talk() -> None:
        channel = Channel()
        asking = [asyncio.ensure_future(channel.call("job", name, 7)) for name in ("first", "second")]
        await asyncio.sleep(0)
        (one, *first), (other, *second) = [await channel.next() for _ in range(2)]
        assert (first, second) == (["job", "first", (7,)], ["job", "second", (7,)])
        await channel.answer(other, 2)
        await channel.answer(one, 1)
        assert await asyncio.gather(*asking) == [1, 2]

    asyncio.run(talk())


class Called:
    """A channel that keeps what is called, and gives prepared answers."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"begin": (2.0, None), **answers}
        self.call = SimpleNamespace(remote=self._call)

    def _call(self, job: str, method: str, *arguments: Any) -> Any:
        self.calls.append((job, method, *arguments))
        return SimpleNamespace(future=lambda: SimpleNamespace(result=lambda: self.answers.get(method)))

    def of(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of its calls."""
        return [arguments for _, name, *arguments in self.calls if name == method]  # type: ignore[misc]


def cohort_of(*names: str) -> Any:
    trials = [SimpleNamespace(identifier=name, variant=SimpleNamespace(group="lora")) for name in names]
    return Cohort(tuple(trials))  # type: ignore[arg-type]


def driver_of(recorded: str = "", earlier: Sequence[Piece] = (), **answers: Any) -> tuple[RemoteDriver, list[float]]:
    now = [0.0]
    job: Any = SimpleNamespace(
        identifier="j", cohort=cohort_of("a", "b", "c"), settings=SimpleNamespace(budget=None), folder=Path("trials"),
        shared=(Path("/nowhere"),), recorded=frozenset(recorded), earlier=earlier,
    )  # fmt: skip
    driver = RemoteDriver(job, Called(**answers), "node")
    driver.ledger.clock = lambda: now[0]
    return driver, now


def test_a_job_begins_at_the_price_of_its_machine_and_with_what_is_left_then() -> None:
    driver, _ = driver_of(recorded="c", begin=(2.0, 7.0))
    assert driver.channel.calls == [("j", "begin", "node", Path("/nowhere"))]
    assert (driver.ledger.price_per_hour, driver.ledger.limit_seconds) == (2.0, 7.0)
    assert [driver.has(name) for name in ("a", "c")] == [False, True]


def test_a_time_limit_is_asked_for_and_counts_from_then_on() -> None:
    limit = TimeLimit(60.0, 0.2)
    driver, now = driver_of(recorded="c", begin=(2.0, 30.0), time_limit=limit)
    costs = EvaluationCost(20, 10, 0.1, 0.2)
    with driver.ledger.book("load"):
        now[0] = 5.0
    assert driver.time_limit(driver.job.cohort, costs) is limit
    assert driver.ledger.remaining() == 60.0
    assert [sum(piece.seconds for piece in pieces) for pieces, *_ in driver.channel.of("book")] == [5.0]
    ((cohort, told),) = driver.channel.of("time_limit")
    assert [trial.identifier for trial in cohort.trials] == ["a", "b"], "what is recorded costs nothing"
    assert told == costs
    driver.channel.answers["time_limit"] = BudgetSpent("nothing is left")
    with pytest.raises(BudgetSpent, match="nothing is left"):
        driver.time_limit(cohort_of("a"), costs)


def test_what_is_recorded_is_not_done_again_and_each_second_is_told_once() -> None:
    driver, now = driver_of()
    with driver.ledger.book("tune", trial="a"):
        now[0] = 4.0
        driver.leave(driver.job.cohort.trials[0], "record")  # type: ignore[arg-type]
        now[0] = 5.0
        driver.book(saved=True)
    assert [driver.has(name) for name in ("a", "b", "c")] == [True, False, False]
    assert [(sum(piece.seconds for piece in pieces), saved) for pieces, _, saved in driver.channel.of("book")] == [
        (4.0, False), (1.0, True)
    ]  # fmt: skip
    assert [arguments[1] for arguments in driver.channel.of("leave")] == ["record"]


def test_what_was_booked_before_is_in_what_a_trial_cost_and_neither_told_nor_held_against_its_limit() -> None:
    before = Piece("lost", 0, "lost-b1", "tune", "a", "lora", 6.0, 3600.0, 0.0, attempt=2)
    driver, now = driver_of(earlier=[before], begin=(7200.0, 10.0))
    with driver.ledger.book("tune", trial="a"):
        now[0] = 4.0
        assert driver.ledger.remaining() == 6.0
    driver.book()
    assert [piece.seconds for pieces, *_ in driver.channel.of("book") for piece in pieces] == [4.0]
    cost = RecordWriter(driver.job.settings, driver, 0).cost(driver.job.cohort.trials[0])
    assert (cost.seconds, cost.dollars) == (10.0, 6.0 + 8.0)
    assert driver.ledger.shares_of("a")["lost-b1"] == 1.0, "features that it read are its own"


def test_what_the_driver_cannot_do_is_the_workers_to_record() -> None:
    driver, _ = driver_of(leave=OSError("no space left"))
    with pytest.raises(OSError, match="no space left"):
        driver.leave(driver.job.cohort.trials[0], "record")  # type: ignore[arg-type]
    assert not driver.has("a")


def test_who_pays_for_what_stays_is_told_before_it_is_made() -> None:
    driver, now = driver_of()
    with driver.ledger.book("tune", trial="a"):
        now[0] = 3.0
        paying = driver.paying()
        told = [(piece.booking, piece.seconds) for pieces, *_ in driver.channel.of("book") for piece in pieces]
    assert told == [(paying, 3.0)]


def test_a_training_is_told_once_a_second_and_what_happens_once_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("dollartune.engines.ray_worker.time.monotonic", lambda: now[0])
    driver, _ = driver_of()
    state = TrialInTraining("a", False, 0.5, 10, "progress")  # type: ignore[arg-type]
    for moment in (100.0, 100.9, 101.0):
        now[0] = moment
        driver.training((), [state])
    driver.note("it begins fresh")
    driver.validated("a", "validation")  # type: ignore[arg-type]
    driver.evaluating("a")  # type: ignore[arg-type]
    assert driver.channel.of("show") == [
        ["training", (), [state]], ["training", (), [state]], ["note", "it begins fresh"], ["validated", "a", "validation"],
        ["evaluating", "a"],
    ]  # fmt: skip


def test_a_worker_whose_loading_uses_up_the_money_leaves_a_record_that_says_so(
    study_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dollartune[ray]'")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    clock = itertools.count(0.0, 40.0)  # each look at it is so much later
    monkeypatch.setattr("dollartune.engines.ray_worker.Ledger", partial(Ledger, clock=lambda: next(clock)))
    settings = load_study(study_of(methods=["bitfit"]))
    (trial,), (task,), _ = plan(settings)
    channel = Called(begin=(2.0, 60.0))
    worker = RayWorker(settings, [task.without_rows()], 0, channel, Path.cwd(), torch.get_num_threads(), 0.0)
    job = Job("j", Cohort((trial,)), settings, False, tmp_path / "trials", (), frozenset(), ())
    worker.run(job, task.splits(trial.scale, settings.data_seed, settings.evaluation.rows, trial.draw))
    ((_, record, _),) = channel.of("leave")
    assert record.error.kind == "budget"
    assert "the budget was used up while the backbone and the data were loaded" in record.error.message


def test_nothing_of_ray_is_imported_unless_it_is_asked_for() -> None:
    import subprocess

    script = (
        "import sys, dollartune.study.runner, dollartune.cli.run\n"
        "assert 'ray' not in sys.modules, 'ray is imported'\n"
        "assert not any(name.startswith('dollartune.engines.ray') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
