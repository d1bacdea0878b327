"""What each of two processes does in `test_distributed.py`: trains a trial on its share and writes down its losses."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from dollartune.attachment.attached import Attached
from dollartune.attachment.fsdp import whole
from dollartune.backbones.loading import Backbone
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.train.distributed import joined, shard_copies, shard_layers, whole_layers
from dollartune.train.encoding import Encoded
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState


def rows(count: int, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (length,), generator=generator).tolist())

    return [Encoded(str(i), draw(3 + i % 4), draw(1 + i % 2)) for i in range(count)]


def trained(family: str, method: str, micro: int | None, checkpointing: bool = False) -> dict[str, list[float]]:
    """Losses of a short training, and the sums of the tensors that it ends with."""
    tiny = tiny_backbone(family)
    tiny = replace(tiny, model=copy.deepcopy(tiny.model))
    backbone = Backbone(family, tiny.model, None, tiny.anatomy, tiny.objective)
    with joined() as group:
        if group.size > 1 and method != "full":
            shard_layers(tiny.model, tiny.anatomy)
        attached = Attached(tiny.model, tiny.anatomy)
        with whole_layers(tiny.model):
            adapter = attached.add("trial", [build_method(method)])
            assert bool(shard_copies(adapter)) == (group.size > 1 and method == "full")
        settings = TrainingSettings(
            epochs=2, batch_size=5, micro_batch_size=micro, schedule="constant", gradient_checkpointing=checkpointing
        )
        state = TrialState("trial", adapter, rows(12, 0), settings, seed=0)
        trainer = CohortTrainer(backbone, attached, [state], rows(6, 1))
        losses = []
        while not state.done:
            losses += trainer.forward_backward.gradients([state])
            state.step(losses[-1])
        found = {
            "losses": losses,
            "validation": trainer.validation_losses([state]),
            "tensors": [float(whole(p).detach().double().abs().sum()) for p in adapter.parameters()],
        }
        attached.detach()
    return found


def write(folder: Path) -> None:
    """Trains the cases in `cases.json`, and writes down what came of them."""
    cases = json.loads((folder / "cases.json").read_text())
    with joined() as everyone:
        result = [trained(*case) for case in cases]
        (folder / f"rank{everyone.rank}.json").write_text(json.dumps(result))
    assert os.environ["WORLD_SIZE"] == "2"
