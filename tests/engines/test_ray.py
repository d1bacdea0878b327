"""The parts of the Ray engine that need no cluster: who is reached, what machines cost, what travels, what is tried again."""

import asyncio
import pickle
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dollartune.budget.ledger import Ledger
from dollartune.config import BackboneSettings, EngineSettings
from dollartune.engines import ray_cluster as cluster_module
from dollartune.engines.base import Cohort
from dollartune.engines.payload import backbone_files, packed_splits, packed_task, unpack_files
from dollartune.engines.ray_attempts import CRASHES, LOSSES, Attempt, GiveUp, Retry, again
from dollartune.engines.ray_cluster import Cluster, Node
from dollartune.engines.ray_mailroom import Asks, Began, Mailroom, Works
from dollartune.engines.remote_account import Entry, RemoteAccount, Spent
from dollartune.engines.rents import Rents
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
def test_how_many_units_a_machine_has_room_for(
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


def attempt_on(node: Node, ledger: Ledger, began: float) -> Attempt:
    attempt = Attempt(Cohort(()), TrainingSettings())
    attempt.node, attempt.began = node, began
    attempt.account = RemoteAccount(ledger, node.slot_price)
    return attempt


def test_machines_that_wait_are_paid_for_and_no_second_is_paid_twice() -> None:
    now = [0.0]
    ledger = Ledger(price_per_hour=1.0)
    rents = Rents(ledger, True, lambda: now[0])
    nodes = {"a": Node("a", "a", 2, 7200.0), "b": Node("b", "b", 1, 3600.0)}
    rents.update(nodes, [])
    now[0] = 10.0
    working = attempt_on(nodes["a"], ledger, 10.0)
    rents.update(nodes, [working])
    assert ledger.spent_dollars() == pytest.approx(10 * 2 + 10 * 1)
    assert (rents.idle(False).machines, rents.idle(False).price_per_hour) == (1.5, 7200 / 2 + 3600)
    assert rents.idle(True).machines == 0  # what waits now will be working soon
    now[0] = 20.0
    assert working.account is not None
    working.account.report(Spent({Entry("x", "tune", "t", "lora"): 10.0}))
    rents.update(nodes, [working])
    assert ledger.spent_dollars() == pytest.approx(20 * 2 + 20 * 1)
    rents.ended(working)
    working.account.close(lost=False)
    now[0] = 30.0
    rents.update({"a": nodes["a"]}, [])  # the other one is lost
    now[0] = 40.0
    rents.update({"a": nodes["a"]}, [])
    rents.close()
    assert ledger.spent_dollars() == pytest.approx(40 * 2 + 20 * 1)  # b until it was last seen
    assert ledger.totals().by_category == {"other": pytest.approx(35 + 20), "tune": 10.0}


def test_a_cluster_that_others_pay_for_costs_what_units_use() -> None:
    now = [0.0]
    ledger = Ledger()
    rents = Rents(ledger, False, lambda: now[0])
    nodes = {"a": Node("a", "a", 2, 7200.0)}
    rents.update(nodes, [])
    now[0] = 10.0
    rents.update(nodes, [])
    rents.close()
    assert ledger.spent_seconds() == 0


# What follows when an attempt ends without a result

ERRORS = SimpleNamespace(
    RayTaskError=type("RayTaskError", (Exception,), {}),
    OutOfMemoryError=type("OutOfMemoryError", (Exception,), {}),
    NodeDiedError=type("NodeDiedError", (Exception,), {}),
    WorkerCrashedError=type("WorkerCrashedError", (Exception,), {}),
)


def unit_of(*names: str) -> Any:
    return Cohort(tuple(SimpleNamespace(identifier=name) for name in names))  # type: ignore[arg-type]


def next_of(attempt: Attempt, error: Exception, lives: bool = True, files: Any = None) -> Any:
    return again(attempt, error, ERRORS, lives, files or {})


def test_a_lost_machine_is_no_fault_of_the_unit_unless_it_happens_again_and_again() -> None:
    attempt = Attempt(unit_of("a", "b"), TrainingSettings())
    for _ in range(LOSSES):
        found = next_of(attempt, ERRORS.NodeDiedError("gone"), lives=False)
        assert isinstance(found, Retry)
        (attempt,) = found.attempts
        assert attempt.cohort.trials[0].identifier == "a"
    assert next_of(attempt, ERRORS.NodeDiedError("gone")) == GiveUp(
        "machine_lost", "4 machines were lost one after the other while they ran this cohort."
    )
    attempt.saved = True  # it got further
    assert isinstance(next_of(attempt, ERRORS.WorkerCrashedError("gone"), lives=False), Retry)


def test_a_cohort_whose_process_dies_goes_on_one_by_one_from_its_checkpoint() -> None:
    files = {"a.json": b"1", "a.safetensors": b"2", "b.json": b"3", "b.safetensors": b"4"}
    found = next_of(Attempt(unit_of("a", "b"), TrainingSettings()), ERRORS.WorkerCrashedError("killed"), files=files)
    assert isinstance(found, Retry)
    (whole,) = found.attempts  # once more as it was
    assert len(whole.cohort.trials) == 2
    found = next_of(whole, ERRORS.WorkerCrashedError("killed"), files=files)
    assert isinstance(found, Retry)
    assert [[t.identifier for t in one.cohort.trials] for one in found.attempts] == [["a"], ["b"]]
    assert found.attempts[1].checkpoint == {"b.json": b"3", "b.safetensors": b"4"}
    (attempt,) = [one for one in found.attempts if one.cohort.name == "b"]
    for _ in range(CRASHES - 1):
        retry = next_of(attempt, ERRORS.WorkerCrashedError("killed"))
        assert isinstance(retry, Retry)
        (attempt,) = retry.attempts
    given_up = next_of(attempt, ERRORS.WorkerCrashedError("killed"))
    assert isinstance(given_up, GiveUp)
    assert given_up.kind == "crash"


def test_memory_that_the_machine_runs_out_of_is_tried_with_smaller_passes_then_alone() -> None:
    attempt = Attempt(unit_of("a", "b"), TrainingSettings(batch_size=4))
    sizes = []
    while True:
        found = next_of(attempt, ERRORS.OutOfMemoryError("killed"))
        if not isinstance(found, Retry) or len(found.attempts) > 1:
            break
        (attempt,) = found.attempts
        sizes.append(attempt.training.micro_batch_size)
    assert sizes == [2, 1]
    assert isinstance(found, Retry)
    last = next_of(found.attempts[0], ERRORS.OutOfMemoryError("killed"))
    assert isinstance(last, GiveUp)
    assert last.kind == "out_of_memory"


def test_a_bug_is_recorded_and_a_machine_without_dollartune_ends_the_study() -> None:
    error = ERRORS.RayTaskError()
    error.cause = ValueError("a bug")
    assert next_of(Attempt(unit_of("a"), TrainingSettings()), error) == GiveUp("error", "ValueError: a bug")
    error.cause = ModuleNotFoundError("No module named 'dollartune'")
    with pytest.raises(UserError, match="cannot import dollartune: No module named"):
        next_of(Attempt(unit_of("a"), TrainingSettings()), error)


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


def test_only_what_loading_reads_is_sent_of_a_backbone(local_backbone: Any, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(local_backbone("llama"), folder)
    for name in ("pytorch_model.bin", "training_args.bin", "code.py", "optimizer.pt", "README.md"):
        (folder / name).write_bytes(b"x")
    files, revision = backbone_files(BackboneSettings(name=str(folder)))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert not {"pytorch_model.bin", "training_args.bin", "code.py", "optimizer.pt", "README.md"} & set(files)
    assert revision is None
    assert "code.py" in backbone_files(BackboneSettings(name=str(folder), trust_remote_code=True))[0]
    assert "model.safetensors" not in backbone_files(BackboneSettings(name=str(folder), random_weights_seed=1))[0]
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin" in backbone_files(BackboneSettings(name=str(folder)))[0]
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        backbone_files(BackboneSettings(name=str(folder)))
    assert backbone_files(BackboneSettings(name="tiny-decoder")) == ({}, None)  # every installation has it


def test_files_are_unpacked_whole_and_once(tmp_path: Path) -> None:
    unpack_files({"a": b"1", "b": memoryview(b"2")}, tmp_path / "s" / "0")
    unpack_files({"a": b"other"}, tmp_path / "s" / "0")
    assert {path.name: path.read_bytes() for path in (tmp_path / "s" / "0").iterdir()} == {"a": b"1", "b": b"2"}
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["0"]


# The mailroom


def test_messages_are_kept_until_they_are_confirmed_and_questions_until_they_are_answered() -> None:
    async def talk() -> None:
        room = Mailroom()
        assert await room.collect(0, 0.0) == []
        assert await room.bring(Works("x", Spent())) is None
        asked = asyncio.ensure_future(room.ask(Began("y", Spent(), "node", 1)))
        await asyncio.sleep(0)
        mail = await room.collect(0, 1.0)
        assert [(number, type(message)) for number, message in mail] == [(1, Works), (2, Began)]
        assert await room.collect(1, 1.0) == mail[1:]  # what was not confirmed comes again
        assert not asked.done()
        await room.answer("y", "welcome")
        assert await asked == "welcome"
        await room.answer("y", "nobody waits for this")
        await room.limit({"x": 12.5})
        assert await room.bring(Works("x", Spent())) == 12.5
        assert await room.bring(Works("y", Spent())) is None
        again = asyncio.ensure_future(room.ask(Asks("x", Spent(), ("t",), 0.1, 0.1)))
        await asyncio.sleep(0)
        assert await room.bring(Works("x", Spent())) is None  # a cut of the last time_limit says nothing of the next
        await room.answer("x", "no money")
        assert await again == "no money"

    asyncio.run(talk())


def test_nothing_of_ray_is_imported_unless_it_is_asked_for() -> None:
    import subprocess

    script = (
        "import sys, dollartune.study.runner, dollartune.cli.run\n"
        "assert 'ray' not in sys.modules, 'ray is imported'\n"
        "assert not any(name.startswith('dollartune.engines.ray') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
