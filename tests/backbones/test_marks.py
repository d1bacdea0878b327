"""Marks of a vocabulary: where answers start, and which ids are no words, as checkpoints write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.marks import decoder_start, special_ids
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.export.scoring import sample_inputs
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoded

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MARKS = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def t5gemma(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """An encoder-decoder without a start token: its own code starts answers from the beginning mark."""
    stack = {**MARKS, **WIDTH, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    config: Any = transformers.T5GemmaConfig(encoder=stack, decoder=stack, vocab_size=96)
    folder = tmp_path_factory.mktemp("t5gemma")
    torch.manual_seed(0)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return load_backbone(str(folder), "language")


def test_answers_start_from_what_the_models_own_code_takes(t5gemma: Backbone) -> None:
    own = t5gemma.model.prepare_decoder_input_ids_from_labels(torch.tensor([[7, 8]]))
    assert decoder_start(t5gemma.model) == Collator(t5gemma).start == int(own[0, 0]) == 1


def test_labels_of_several_tokens_are_scored_where_an_encoders_output_must_have_names(t5gemma: Backbone) -> None:
    rows = [Encoded("a", (5, 6, 7), label=0), Encoded("b", (8, 9), label=0)]
    answers = [(17, 23), (17, 42, 43)]
    attached = Attached(t5gemma.model, t5gemma.anatomy)
    together = label_log_probabilities(t5gemma, attached, None, rows, answers)
    alone = label_log_probabilities(t5gemma, attached, None, rows, answers, shared=False)
    attached.detach()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_may_end_texts_by_several_tokens(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**MARKS, **WIDTH, "eos_token_id": [2, 5, 6]})
    assert special_ids(config) == {0, 1, 2, 5, 6}
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    ids = sample_inputs(load_backbone(str(tmp_path)))["input_ids"]
    assert not set(ids[:-1].flatten().tolist()) & {2, 5, 6}
