"""Both sides compute the same: losses of a dozen steps in fp32, from the same start, on the same batches.

python bench/curve.py
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import ours
import peers
import shapes
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.methods.registry import build_method
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

STEPS, LR = 12, 1e-3
TOLERANCE = 2e-4
"""Relative difference of losses that rounding may make in a dozen steps."""


def both() -> dict[str, Any]:
    """Losses of both, `ours` and `peer`, and their largest relative difference."""
    from peft import get_peft_model

    base = shapes.opt(layers=2, width=256, heads=4, vocabulary=4000, dropout=0.0)
    rows = shapes.token_rows([9, 40, 23, 31, 12, 60, 17, 35], vocabulary=4000)
    model = copy.deepcopy(base)
    backbone = Backbone("opt", model, None, anatomy_of(model), "language")
    attached = Attached(model, backbone.anatomy)
    adapter = attached.add("a", [build_method(f"lora(rank=8, lr={LR})")])
    start = {site.name: (edit.A.detach().clone(), edit.B.detach().clone()) for site, edit in adapter.items()}  # type: ignore[attr-defined]
    settings = TrainingSettings(epochs=STEPS, batch_size=8, patience=None, warmup=0.0, precision="fp32")
    data = ours.encoded(rows)
    trial = TrialState("a", adapter, data, settings, 0)
    CohortTrainer(backbone, attached, [trial], data[:1]).run()  # validated rows are what brings a history
    found = [row.train_loss for row in trial.progress.history]  # an epoch is one step here

    tuned = get_peft_model(base, peers.config("lora"))
    for name, module in tuned.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            layer, role = name.split(".layers.")[1].split(".self_attn.")
            a, b = start[f"decoder.{layer}.self_attn.{role[0]}"]
            module.lora_A["default"].weight.data.copy_(a)
            module.lora_B["default"].weight.data.copy_(b)
    with tempfile.TemporaryDirectory() as folder:
        trainer = peers.trainer(
            tuned, peers.examples(rows), folder, lambda tokens: True, per_device_train_batch_size=8, max_steps=STEPS,
            learning_rate=LR, logging_steps=1, logging_strategy="steps",
        )  # fmt: skip
        trainer.train()
    peer = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, peer, strict=True))
    return {"ours": found, "peer": peer, "difference": worst, "equal": worst <= TOLERANCE}


if __name__ == "__main__":
    print(both(), torch.__version__)
