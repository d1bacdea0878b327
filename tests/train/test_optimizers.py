"""Paged AdamW takes AdamW's steps, is kept in checkpoints, and is refused where there is no GPU to page.

bitsandbytes runs the same class on a processor, where nothing is paged, so steps and states can be compared here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.methods.registry import build_method
from dollartune.planner.dry_run import BatchShape, bare, dry_run_of
from dollartune.planner.study_plan import plan_study
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.testing.tiny import meta_backbone
from dollartune.train import optimizers
from dollartune.train.checkpoints import Checkpoints
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState
from dollartune.trials.trial import plan_trials

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processor stand for a GPU."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(optimizers, "check_optimizer", lambda kind, device: None)


def trained(kind: str, epochs: int, checkpoints: Checkpoints | None = None) -> TrialState:
    """A trial with two groups of different rates, begun from the checkpoint if there is one."""
    backbone = load_backbone("tiny-decoder")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("trial", [build_method("lora(rank=4, lr_ratio=4.0)")])
    rows = [Encoded(str(i), (3 + i, 9, 14), (7 + i % 2,)) for i in range(8)]
    settings = TrainingSettings(
        epochs=epochs, batch_size=4, patience=None, schedule="constant", warmup=0.0, optimizer=kind
    )  # type: ignore[arg-type]
    state = TrialState("trial", adapter, rows, settings, seed=0)
    if checkpoints is not None:
        checkpoints.load([state])
    CohortTrainer(backbone, attached, [state], rows[:4]).run()
    return state


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_paged_steps_are_those_of_adamw(anywhere: None, scale: float) -> None:
    """Gradients as small as eps tell where it is added."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 30, generator=generator)
    plain, paged = (torch.nn.Parameter(start.clone()) for _ in range(2))
    both = [
        optimizers.build_optimizer([{"params": [p], "lr": 0.01, "weight_decay": 0.1}], kind)
        for p, kind in ((plain, "adamw"), (paged, "paged_adamw"))  # type: ignore[arg-type]
    ]
    for _ in range(10):
        gradient = torch.randn(50, 30, generator=generator) * scale
        for parameter, optimizer in zip((plain, paged), both, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(paged, plain, atol=1e-6, rtol=0)
    assert not torch.allclose(plain, start, atol=1e-2)


def test_trials_train_with_it(anywhere: None) -> None:
    plain, paged = trained("adamw", 3), trained("paged_adamw", 3)
    assert type(paged.optimizer).__name__ == "PagedAdamW32bit"
    assert [g["lr"] for g in paged.optimizer.param_groups] == [g["lr"] for g in plain.optimizer.param_groups]  # type: ignore[union-attr]
    losses = [[row.validation_loss for row in state.progress.history] for state in (plain, paged)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_an_interrupted_trial_goes_on_with_its_state(anywhere: None, tmp_path: Path) -> None:
    whole = trained("paged_adamw", 4)
    half = trained("paged_adamw", 2)
    half.best = None
    half.progress.plan = whole.progress.plan  # it was the first half of that training, not a whole one
    checkpoints = Checkpoints(tmp_path / "state")
    checkpoints.save([half])
    resumed = trained("paged_adamw", 4, checkpoints)
    state = next(iter(resumed.optimizer.state.values()))  # type: ignore[union-attr]
    assert state["step"] == 8
    assert isinstance(state["step"], int)
    for name, tensor in whole.adapter.tensors().items():
        assert torch.equal(resumed.adapter.tensors()[name], tensor), name


def test_the_choice_reaches_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def paged(groups: Any, **settings: Any) -> Any:
        given.update(settings, groups=groups)
        return SimpleNamespace()

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(PagedAdamW32bit=paged))
    monkeypatch.setattr(optimizers, "check_optimizer", lambda kind, device: None)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.2}]
    optimizers.build_optimizer(groups, "paged_adamw")
    assert given == {"groups": groups, "betas": (0.9, 0.999), "eps": 1e-8}
    assert isinstance(optimizers.build_optimizer(groups), torch.optim.AdamW)


def test_without_a_gpu_or_bitsandbytes_it_is_refused(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = study_of(methods=["lora"], training={"epochs": 1, "optimizer": "paged_adamw"})
    if not torch.cuda.is_available():
        for attempt in (Study(settings).run, lambda: plan_study(load_study(settings))):
            with pytest.raises(UserError, match=r"paged_adamw .* needs CUDA; this machine trains on cpu") as caught:
                attempt()
            assert "--machine t4" in str(caught.value.hint)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        optimizers.check_optimizer("paged_adamw", "cuda")
    plan_study(load_study(settings), machine_name="t4")  # another machine has what it has


def test_the_planner_counts_pages_to_the_host() -> None:
    tiny = meta_backbone("opt")
    found = {}
    for kind in ("adamw", "paged_adamw"):
        settings = TrainingSettings(optimizer=kind)  # type: ignore[arg-type]
        backbone = bare(tiny.model, "opt", tiny.objective)
        with dry_run_of(backbone, [build_method("full")], settings) as dry:
            assert dry.adapter is not None
            sizes = [p.numel() for p in dry.adapter.trainable().values()]
            found[kind] = dry.training_step(BatchShape(2, 4, 1)).memory
    assert found["adamw"]["optimizer"] == 8 * sum(sizes)
    small = [size for size in sizes if size < optimizers.PAGED_FROM]
    assert found["paged_adamw"]["optimizer"] == 8 * sum(small)
    assert {k: v for k, v in found["adamw"].items() if k != "optimizer"} == {
        k: v for k, v in found["paged_adamw"].items() if k != "optimizer"
    }


def test_trials_of_the_default_keep_their_names(study_of: Any) -> None:
    conditions = []
    for training in ({}, {"optimizer": "adamw"}, {"optimizer": "paged_adamw"}):
        settings = load_study(study_of(training=training))
        conditions.append(plan_trials(settings, [(0, 0, "language", False)], ["moods"])[0].conditions)
    assert conditions[0] == conditions[1] != conditions[2]
    assert '"optimizer"' not in conditions[0]


@pytest.mark.parametrize("fused", [True, False])
def test_the_count_of_steps_comes_back_where_the_kernel_reads_it(fused: bool) -> None:
    """torch's fused kernel wants it beside the parameter, which on a GPU is not where a checkpoint has it."""
    elsewhere = torch.nn.Parameter(torch.empty(3, device="meta"))  # stands for a GPU
    optimizer = torch.optim.AdamW([elsewhere])
    optimizer.param_groups[0]["fused"] = fused
    saved = {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    optimizers.restore(optimizer, 0, 0, saved)
    devices = {name: tensor.device.type for name, tensor in optimizer.state[elsewhere].items()}
    assert devices == {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
