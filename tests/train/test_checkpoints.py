"""Checkpoints: a cohort that was interrupted goes on and ends with the same bits as one that was not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.engines.display import CohortWatcher, Display
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.progress import Progress
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

SETTINGS = TrainingSettings(epochs=3, batch_size=4, patience=None, precision="fp32")
COHORT = ("lora(rank=2, dropout=0.2)", "prompt(tokens=2)", "adalora(rank=4, target_rank=2)", "bitfit")


class Killed(Exception):
    pass


class KilledAt(Silent):
    """Writes a checkpoint after a step and is killed one step later."""

    def __init__(self, checkpoints: Checkpoints, trials: list[TrialState], step: int) -> None:
        self.checkpoints, self.trials, self.step = checkpoints, trials, step

    def stepped(self, trial: TrialState) -> None:
        if trial is self.trials[-1] and trial.progress.step == self.step:
            self.checkpoints.save(self.trials)
        if trial.progress.step > self.step:
            raise Killed


@pytest.fixture(scope="module")
def rows(backbone: Backbone, moods: Task) -> list[Encoded]:
    return Encoder(backbone).encode(moods, moods.splits(10, 0, 4).train)


def run(
    backbone: Backbone, rows: list[Encoded], methods: tuple[str, ...], checkpoints: Checkpoints | None, kill: int = 0
) -> list[TrialState]:
    attached = Attached(backbone.model, backbone.anatomy)
    trials = [
        TrialState(f"t{seed}", attached.add(f"t{seed}", [build_method(text)], seed), rows, SETTINGS, seed)
        for seed, text in enumerate(methods)
    ]
    watcher = KilledAt(checkpoints, trials, kill) if checkpoints and kill else None
    try:
        if checkpoints and not kill:
            assert checkpoints.load(trials)
        CohortTrainer(backbone, attached, trials, rows[:4], watcher).run()
    finally:
        attached.detach()
    return trials


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("methods", "threads"), [(COHORT, 1), (COHORT, 2), (("full",), 1)], ids=["cohort", "lanes", "full"]
)
@pytest.mark.parametrize("kill", [2, 4])
def test_resumed_equals_unbroken_bit_for_bit(
    backbone: Backbone,
    rows: list[Encoded],
    tmp_path: Path,
    methods: tuple[str, ...],
    threads: int,
    kill: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr("dollartune.train.loop.ROUND_SECONDS", 0.0)  # lanes meet after every step
    whole = run(backbone, rows, methods, None)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    with pytest.raises(Killed):
        run(backbone, rows, methods, checkpoints, kill)
    resumed = run(backbone, rows, methods, Checkpoints(tmp_path / "checkpoint"))
    for first, second in zip(whole, resumed, strict=True):
        assert [r.validation_loss for r in first.progress.history] == [
            r.validation_loss for r in second.progress.history
        ]
        assert [r.train_loss for r in first.progress.history] == [r.train_loss for r in second.progress.history]
        assert first.progress.examples == second.progress.examples == 30
        assert first.progress.best_step == second.progress.best_step
        tensors = second.adapter.tensors()
        for name, tensor in first.adapter.tensors().items():
            assert torch.equal(tensor, tensors[name]), name
    checkpoints.clear()
    assert not list(tmp_path.iterdir())


def test_a_classifiers_head_goes_on(local_backbone: Any, moods: Task, tmp_path: Path) -> None:
    classifier = load_backbone(str(local_backbone("bert")), "classification", ("good", "bad"))
    encoded = Encoder(classifier).encode(moods, moods.splits(10, 0, 4).train)
    whole = run(classifier, encoded, ("head",), None)
    with pytest.raises(Killed):
        run(classifier, encoded, ("head",), Checkpoints(tmp_path / "checkpoint"), 2)
    resumed = run(classifier, encoded, ("head",), Checkpoints(tmp_path / "checkpoint"))
    (expected,), (tensors,) = ([trial.adapter.tensors() for trial in trials] for trials in (whole, resumed))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in expected.items())


def one(backbone: Backbone, rows: list[Encoded]) -> Any:
    attached = Attached(backbone.model, backbone.anatomy)
    trial = TrialState("t0", attached.add("t0", [build_method("bitfit")], 0), rows, SETTINGS, 0)
    return attached, trial


def test_a_kill_between_two_renames_leaves_the_older_one(
    backbone: Backbone, rows: list[Encoded], tmp_path: Path
) -> None:
    attached, trial = one(backbone, rows)
    trial.progress.step = 2
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save([trial])
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
    (tmp_path / ".checkpoint.new").mkdir()  # half written
    trial.progress.step = 0
    assert Checkpoints(tmp_path / "checkpoint").load([trial])
    assert trial.progress.step == 2
    checkpoints.save([trial])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    attached.detach()


def test_a_checkpoint_of_other_trials_is_not_taken(backbone: Backbone, rows: list[Encoded], tmp_path: Path) -> None:
    attached, trial = one(backbone, rows)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    assert not checkpoints.load([trial])
    checkpoints.save([trial])
    trial.name = "other"
    assert not checkpoints.load([trial])
    attached.detach()


def test_when_checkpoints_are_due(tmp_path: Path) -> None:
    now = [100.0]
    checkpoints = Checkpoints(tmp_path / "checkpoint", every_seconds=10.0, clock=lambda: now[0])
    assert not checkpoints.due()
    now[0] += 0.9
    assert not checkpoints.worth_keeping()
    now[0] += 0.2
    assert checkpoints.worth_keeping()
    assert not checkpoints.due()
    now[0] += 9
    assert checkpoints.due()


@pytest.mark.parametrize("seconds_to_write", [0.1, 3.0, 40.0])
def test_checkpoints_take_at_most_a_twentieth_of_the_time(tmp_path: Path, seconds_to_write: float) -> None:
    now, writing = [0.0], 0.0

    def saved() -> None:
        nonlocal writing
        now[0] += seconds_to_write
        writing += seconds_to_write

    checkpoints = Checkpoints(tmp_path / "checkpoint", every_seconds=10.0, clock=lambda: now[0], saved=saved)
    while now[0] < 20_000:
        now[0] += 0.5  # a step
        if checkpoints.due():
            checkpoints.save([])
    assert writing <= 0.05 * now[0] + seconds_to_write  # the first one comes before its length is known
    assert writing >= 0.5 * min(0.05, seconds_to_write / 10) * now[0]  # and they are not given up


def test_a_checkpoint_of_0_1_goes_on(tmp_path: Path) -> None:
    old = Progress(step=3, seconds=2.5).to_json()
    old.pop("zero_gradients")
    for name in ("layers", "tokens", "tokens_computed"):
        old[f"trunk_{name}"] = old.pop(f"frozen_prefix_{name}")
    old |= {"trunk_layers": {"decoder": 2}, "trunk_tokens": 70}
    found = Progress.from_json(json.loads(json.dumps(old)))
    assert (found.step, found.frozen_prefix_layers, found.frozen_prefix_tokens) == (3, {"decoder": 2}, 70)
    assert Progress.from_json(found.to_json()) == found


def test_pickle_is_not_among_the_files(backbone: Backbone, rows: list[Encoded], tmp_path: Path) -> None:
    attached, trial = one(backbone, rows)
    Checkpoints(tmp_path / "checkpoint").save([trial])
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".json", ".safetensors"}
    attached.detach()


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_checkpoint_costs_its_steps_and_not_the_trial(
    backbone: Backbone, rows: list[Encoded], tmp_path: Path, suffix: str
) -> None:
    """As a power failure leaves it: renamed, and empty."""
    attached, trial = one(backbone, rows)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    trial.progress.step = 2
    checkpoints.save([trial])
    (tmp_path / "checkpoint" / f"{trial.name}.{suffix}").write_bytes(b"")
    trial.progress.step = 0
    assert not checkpoints.load([trial])
    assert trial.progress.step == 0
    checkpoints.save([trial])
    assert checkpoints.load([trial])
    attached.detach()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_training_goes_on_where_a_checkpoint_finds_no_room(
    backbone: Backbone, rows: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    attached, trial = one(backbone, rows)
    now, said = [0.0], []
    checkpoints = Checkpoints(tmp_path / "checkpoint", every_seconds=10.0, clock=lambda: now[0])
    display = Display()
    display.note = said.append  # type: ignore[method-assign]
    known = SimpleNamespace(identifier=trial.name, label="lora")
    watcher = CohortWatcher(display, [known], [trial], checkpoints, lambda *_: False)  # type: ignore[list-item]
    trial.progress.step, now[0] = 2, 11.0
    watcher.stepped(trial)
    assert checkpoints.holds([trial.name])

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"as much as there is room for")
        raise error

    monkeypatch.setattr("dollartune.train.checkpoints.save_file", full)
    trial.progress.step, now[0] = 3, 22.0
    watcher.stepped(trial)
    watcher.stepped(trial)
    assert len(said) == 1, "the next one is written when it is due"
    assert "lora: no checkpoint could be written" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], "a part of one takes no room"
    assert checkpoints.load([trial])
    assert trial.progress.step == 2
    attached.detach()
