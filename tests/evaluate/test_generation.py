"""Free generation: new text only, in the order of the questions."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

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
    found.model.generation_config.forced_eos_token_id = (
        None  # BART's stored settings end a text at the limit; ours do not
    )
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


STORED = {
    "min_length": 40,
    "max_length": 3,
    "min_new_tokens": 12,
    "max_time": 1e-9,
    "do_sample": True,
    "temperature": 50.0,
    "top_k": 1000,
    "num_beams": 3,
    "early_stopping": True,
    "length_penalty": 9.0,
    "repetition_penalty": 9.0,
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[token] for token in range(5, 120)],
    "suppress_tokens": list(range(5, 120)),
    "begin_suppress_tokens": list(range(5, 120)),
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 9,
    "exponential_decay_length_penalty": (1, 9.0),
    "sequence_bias": [[[token], -50.0] for token in range(5, 120)],
    "num_return_sequences": 2,
    "eos_token_id": list(range(5, 120)),
    "guidance_scale": 5.0,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "renormalize_logits": True,
}
"""Every field of a stored generation_config that can change a greedy answer, with a value that does."""


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_what_a_checkpoint_stores_decides_nothing(local_backbone: Any, moods: Task, family: str) -> None:
    found: Backbone = load_backbone(str(local_backbone(family)))
    encoded = Encoder(found).encode(moods, moods.splits(5, 0, 2).train)
    attached = Attached(found.model, found.anatomy)
    texts = generate_texts(found, attached, None, encoded, 8, batch_size=3)
    assert any(texts)
    plain = found.model.generation_config.to_dict()
    for name, value in STORED.items():
        stored = GenerationConfig.from_dict(plain)
        setattr(stored, name, value)
        found.model.generation_config = stored
        assert generate_texts(found, attached, None, encoded, 8, batch_size=3) == texts, name
        assert found.model.generation_config is stored
    attached.detach()
