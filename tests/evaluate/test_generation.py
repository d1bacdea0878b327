"""Free generation: new text only, in the order of the questions."""

from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.evaluate.generation import generate_texts
from dollartune.tasks.base import Task
from dollartune.train.encoding import Encoder


@pytest.mark.parametrize("family", ["llama", "opt", "t5", "bart"])
def test_only_new_text_comes_back_and_batches_change_nothing(local_backbone: Any, moods: Task, family: str) -> None:
    found: Backbone = load_backbone(str(local_backbone(family)))
    encoded = Encoder(found).encode(moods, moods.splits(5, 0, 2).train)
    attached = Attached(found.model, found.anatomy)
    texts = generate_texts(found, attached, None, encoded, 4, batch_size=3)
    for row, text in zip(encoded, texts, strict=True):
        with torch.no_grad():
            ids = found.model.generate(
                input_ids=torch.tensor([row.prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0
            )[0]
        new = ids if found.kind == "encoder_decoder" else ids[len(row.prompt) :]
        assert text == found.processor.decode(new, skip_special_tokens=True).strip()
    assert any(texts)
    attached.detach()


def test_a_label_ends_with_its_line(backbone: Backbone, moods: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = Encoder(backbone).encode(moods, moods.splits(2, 0, 2).train)
    ids = backbone.processor(" good\nand more\n", add_special_tokens=False).input_ids
    attached = Attached(backbone.model, backbone.anatomy)
    monkeypatch.setattr(attached, "generate", lambda **_: torch.tensor([ids, ids]))
    assert generate_texts(backbone, attached, None, encoded, 8, stop_at_newline=True) == ["good", "good"]
    assert generate_texts(backbone, attached, None, encoded, 8)[0] == "good\nand more"
    attached.detach()
