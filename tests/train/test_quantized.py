"""Backbones in 4 bits: every method that adds to linears trains on them, on a CPU too, and their size is known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.quantize import is_quantized
from dollartune.errors import UserError
from dollartune.methods.registry import build_method
from dollartune.testing.directory import write_tiny
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

pytest.importorskip("bitsandbytes")

METHODS = (
    "lora(rank=4)", "lora(rank=4, init='pissa')", "rslora(rank=4)", "dora(rank=4)", "adalora(rank=4, target_rank=2)",
    "vera(rank=8)", "ia3", "bitfit", "diff_pruning(keep=0.5)", "intrinsic(dimension=50)",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")), quantize="nf4")


def packed(backbone: Backbone) -> dict[str, torch.Tensor]:
    found = {n: m for n, m in backbone.model.named_modules() if getattr(m, "weight", None) is not None}
    return {name: module.weight.data.clone() for name, module in found.items() if is_quantized(module)}


def trained(backbone: Backbone, method: str, **settings: Any) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    rows = [
        Encoded(str(i), tuple(torch.randint(3, 60, (5,), generator=generator).tolist()), (7 + i % 2,)) for i in range(8)
    ]
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        adapter = attached.add("trial", [build_method(method)])
        whole = TrainingSettings(epochs=6, batch_size=4, patience=None, schedule="constant", warmup=0.0, **settings)
        state = TrialState("trial", adapter, rows, whole, seed=0)
        rate = 0.002 if method.startswith("diff_pruning") else 0.02  # full matrices of differences take smaller steps
        for group in state.optimizer.param_groups if state.optimizer else ():
            group["lr"] = rate
        state.peak_rates = [rate] * len(state.peak_rates)
        CohortTrainer(backbone, attached, [state], rows).run()
        return [row.validation_loss for row in state.progress.history]
    finally:
        attached.detach()


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_add_to_linears_train_on_packed_ones(backbone: Backbone, method: str) -> None:
    before = packed(backbone)
    assert len(before) == 7 * backbone.anatomy.layer_counts["decoder"]
    losses = trained(backbone, method)
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], weight) for name, weight in packed(backbone).items())


def test_checkpointing_changes_nothing(backbone: Backbone) -> None:
    plain, recomputed = (trained(backbone, "lora(rank=4)", gradient_checkpointing=on) for on in (False, True))
    assert plain == recomputed


def test_what_is_packed_is_not_trained_itself(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="packed in 4 bits"):
        trained(backbone, "full")
