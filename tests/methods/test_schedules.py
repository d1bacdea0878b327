"""Methods with a schedule of their own: a checkpoint from before they keep their promise is not the best one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.attachment import Adapter
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import attached_to, loss
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState


def run(spec: str, losses: list[float], patience: int | None = None) -> tuple[TrialState, list[bool]]:
    """Ten steps with the validation losses given, and whether the method was settled at each."""
    backbone = tiny_backbone("opt")
    adapter = Adapter([build_method(spec)], backbone.anatomy, backbone.model)
    rows: Any = [SimpleNamespace(length=5) for _ in range(10)]
    settings = TrainingSettings(epochs=1, batch_size=1, patience=patience, precision="fp32")
    trial = TrialState("trial", adapter, rows, settings, seed=0)
    assert trial.total_steps == 10
    settled = []
    with attached_to(backbone, adapter) as attached:
        for value in losses:
            if trial.done:
                break
            loss(backbone, attached, backbone.inputs()).backward()
            trial.step(1.0)
            trial.validated(value)
            settled.append(trial.progress.settled)
    trial.finish()
    return trial, settled


ADALORA = "adalora(rank=4, target_rank=2, warmup=0.2, final=0.4, where='attention')"
DIFF = "diff_pruning(keep=0.1, final=0.4, where='attention')"


@pytest.mark.parametrize(("spec", "first"), [(ADALORA, 5), (DIFF, 5)])
def test_the_best_comes_after_the_promise_is_kept(spec: str, first: int) -> None:
    trial, settled = run(spec, [float(step) for step in range(10)])  # the earliest would be the best
    assert settled == [step >= first for step in range(10)]
    assert trial.progress.best_step == first + 1
    report = trial.adapter.methods[0].report(trial.adapter.parts[0])
    assert report.get("mean_rank", 2.0) == 2.0
    assert report.get("sparsity", 0.9) == pytest.approx(0.9, abs=1e-3)


def test_patience_waits_for_the_promise() -> None:
    trial, settled = run(ADALORA, [1.0] * 10, patience=1)
    assert trial.progress.stopped == "patience"
    assert len(settled) == 7, "one validation after the first that counts"


def test_a_method_without_a_schedule_counts_from_the_start() -> None:
    trial, settled = run("lora(rank=2)", [float(step) for step in range(10)], patience=3)
    assert settled[0]
    assert (trial.progress.best_step, len(settled)) == (1, 4)
