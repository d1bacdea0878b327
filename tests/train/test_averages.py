"""Averages of states: along a run, and of several runs from one start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.train.averages import add_state, mean_of
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.loop import CohortTrainer, Silent
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

SETTINGS = TrainingSettings(batch_size=4, patience=None, precision="fp32", validation_rows=4)


@pytest.fixture(scope="module")
def rows(backbone: Backbone, moods: Task) -> list[Encoded]:
    return Encoder(backbone).encode(moods, moods.splits(10, 0, 4).train)


def test_a_running_mean_is_the_mean() -> None:
    states = [{"w": torch.randn(3), "step": torch.tensor(number)} for number in range(5)]
    average = {name: tensor.clone() for name, tensor in states[0].items()}
    for count, state in enumerate(states[1:], start=2):
        add_state(average, state, count)
    torch.testing.assert_close(average["w"], torch.stack([state["w"] for state in states]).mean(0))
    assert average["step"] == 4, "whole numbers have no mean: the latest"
    torch.testing.assert_close(mean_of(states)["w"], average["w"])
    assert not torch.equal(states[0]["w"], average["w"]), "what is averaged stays as it is"
    with pytest.raises(UserError, match=r"differ in \['w'\]"):
        mean_of([states[0], {"w": torch.zeros(4), "step": torch.tensor(0)}])


class Killed(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, checkpoints: Checkpoints, step: int) -> None:
        self.checkpoints, self.step = checkpoints, step

    def stepped(self, trial: TrialState) -> None:
        if trial.progress.step == self.step:
            self.checkpoints.save([trial])
            raise Killed


def run(
    backbone: Backbone, rows: list[Encoded], losses: Any = None, watcher: Silent | None = None, checkpoints: Any = None
) -> TrialState:
    attached = Attached(backbone.model, backbone.anatomy)
    trial = TrialState(
        "t",
        attached.add("t", [build_method("lora(rank=2, dropout=0.1)")], 0),
        rows,
        SETTINGS,
        0,
        steps=50,
        from_money=True,
    )
    trainer = CohortTrainer(backbone, attached, [trial], rows[:4], watcher)
    if losses is not None:
        trainer.block_losses = lambda trials, rows=None: [[(next(losses), 1)] for _ in trials]  # type: ignore[method-assign]
    try:
        if checkpoints is not None:
            assert checkpoints.load([trial])
        trainer.run()
    finally:
        attached.detach()
    return trial


@pytest.mark.parametrize(("last", "kept"), [(0.5, "decay"), (2.0, "")])
def test_the_average_is_kept_where_it_is_better(
    backbone: Backbone, rows: list[Encoded], last: float, kept: str
) -> None:
    # looks after 20, 28, 40 and 50 steps, then the average
    trial = run(backbone, rows, iter([5.0, 4.0, 3.0, 1.0, last]))
    assert trial.progress.averaged == 10
    assert (trial.progress.average, trial.progress.best_loss) == (kept, min(1.0, last))
    assert trial.average is not None
    mine = trial.adapter.tensors()
    assert all(torch.equal(mine[name], tensor) for name, tensor in trial.average.items()) == bool(kept)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("step", [30, 45], ids=["before the decay", "within it"])
def test_killed_and_resumed_ends_with_the_same_average(
    backbone: Backbone, rows: list[Encoded], tmp_path: Path, step: int
) -> None:
    whole = run(backbone, rows)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    with pytest.raises(Killed):
        run(backbone, rows, watcher=KilledAt(checkpoints, step))
    resumed = run(backbone, rows, checkpoints=checkpoints)
    assert resumed.progress.averaged == whole.progress.averaged == 10
    assert resumed.progress.average == whole.progress.average
    assert resumed.progress.plan == whole.progress.plan
    assert resumed.progress.best_blocks == whole.progress.best_blocks
    assert whole.average is not None
    assert resumed.average is not None
    assert all(torch.equal(tensor, resumed.average[name]) for name, tensor in whole.average.items())
    mine = resumed.adapter.tensors()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in whole.adapter.tensors().items())


def test_class_weights_reach_the_gradients(local_backbone: Any, moods: Task) -> None:
    backbone = load_backbone(str(local_backbone("bert")), "classification", moods.labels)
    encoded = Encoder(backbone).encode(moods, moods.splits(10, 0, 4).train)
    first = encoded[0].label
    uneven = [row for row in encoded if row.label == first] + [row for row in encoded if row.label != first][:1]
    ends = {}
    for weights in ("none", "balanced"):
        attached = Attached(backbone.model, backbone.anatomy)
        settings = SETTINGS.model_copy(update={"class_weights": weights, "epochs": 1, "batch_size": len(uneven)})
        trial = TrialState("t", attached.add("t", [build_method("head")], 0), uneven, settings, 0)
        trainer = CohortTrainer(backbone, attached, [trial], [])
        with trainer.ready():
            trainer.forward_backward.gradients([trial])
        bias = next(p for name, p in trial.adapter.named_parameters() if name.endswith("bias") and p.grad is not None)
        ends[weights] = float(bias.grad.abs().sum())
        attached.detach()
    assert ends["none"] > 3 * ends["balanced"], "a new head pulls to the common class, unless both count the same"
