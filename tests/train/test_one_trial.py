"""examples/recipes/one_trial.py is the trainer in one readable file: the same losses, to 1e-5, over 20 steps."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import load_backbone
from dollartune.evaluate.labels import class_log_probabilities, label_log_probabilities
from dollartune.methods import Head, LoRA
from dollartune.tasks.registry import load_task
from dollartune.train.encoding import Encoder
from dollartune.train.loop import CohortTrainer
from dollartune.train.settings import TrainingSettings
from dollartune.train.trial import TrialState

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "one_trial.py"
TRAINING_ROWS = 24
"""30 steps with the default settings."""


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("one_trial", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_trial"] = module
    spec.loader.exec_module(module)
    return module


class Steps(TrialState):
    """Keeps the loss of every step."""

    def step(self, loss: float) -> None:
        self.every_loss = [*getattr(self, "every_loss", []), loss]
        super().step(loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-decoder", "tiny-encoder"])
def test_losses_and_scores_are_the_trainers(name: str, recipe: Any) -> None:
    task = load_task("demo_library")
    splits = task.splits(TRAINING_ROWS, 0, 16)
    classifies = name == "tiny-encoder"
    backbone = load_backbone(name, "classification" if classifies else "language", task.labels)
    methods = [Head(), LoRA()] if classifies else [LoRA()]
    assert task.template is not None
    column = task.template.columns[0]

    encoder = Encoder(backbone)
    train, validation = encoder.encode(task, splits.train), encoder.encode(task, splits.validation)
    attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
    trial = Steps("a", attached.add("a", methods, 0), train, TrainingSettings(precision="fp32"), 0)
    CohortTrainer(backbone, attached, [trial], validation).run()
    if classifies:
        scores = class_log_probabilities(backbone, attached, "a", validation, 32)
    else:
        scores = label_log_probabilities(backbone, attached, "a", validation, encoder.label_answers(task))
    attached.detach()

    words = dict(task.label_words)
    mine_train, mine_validation = (
        recipe.encode(
            backbone,
            [recipe.Row(str(example.fields[column]), str(example.label)) for example in rows],
            task.template.text.replace(f"{{{column}}}", "{text}"),
            words,
        )
        for rows in (splits.train, splits.validation)
    )
    assert [row.prompt for row in mine_train] == [row.prompt for row in train]
    assert [row.answer for row in mine_train] == [row.answer for row in train]
    tuned = recipe.tune(backbone, methods, mine_train, mine_validation)
    mine = torch.stack([recipe.label_scores(backbone, tuned.attached, row, words) for row in mine_validation])
    tuned.attached.detach()

    assert len(tuned.losses) >= 20
    assert tuned.losses[:20] == pytest.approx(trial.every_loss[:20], abs=1e-5)
    assert tuned.validation[:5] == pytest.approx([v.validation_loss for v in trial.progress.history[:5]], abs=1e-5)
    assert tuned.losses[19] != pytest.approx(tuned.losses[0], abs=1e-3)  # something was learned meanwhile
    torch.testing.assert_close(mine, scores, atol=1e-3, rtol=1e-3)


def test_it_fits_on_a_few_screens() -> None:
    lines = RECIPE.read_text().splitlines()
    assert len(lines) <= 300
    assert not any("dollartune.train" in line for line in lines if "import" in line)
