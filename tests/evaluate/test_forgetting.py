"""Forgetting: the loss on general text is the plain model's, identity forgets nothing, noise does; where it has no meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.locate import resolve
from dollartune.errors import UserError
from dollartune.evaluate.forgetting import Forgetting, GeneralText, cut_spans, general_texts, hidden_places
from dollartune.methods.registry import build_method
from dollartune.train.encoding import Encoder

TEXTS = "The river runs south for ninety kilometres before it meets the sea.\n\nBread needs flour, water, salt and time to rise."


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "two.txt"
    path.write_text(TEXTS, encoding="utf8")
    return str(path)


def opened(name: str, text_file: str, labels: tuple[str, ...] = ()) -> tuple[Backbone, Attached, GeneralText]:
    backbone = load_backbone(name, "classification" if labels else None, labels)
    attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
    return backbone, attached, GeneralText(backbone, attached, Encoder(backbone, None, 16), text_file)


def measured(attached: Attached, general: GeneralText, method: str) -> Forgetting:
    attached.add("trial", [build_method(method)], 0)
    try:
        return general.measure("trial")
    finally:
        attached.remove("trial")


def test_a_decoders_loss_is_the_plain_models(text_file: str) -> None:
    backbone, attached, general = opened("tiny-decoder", text_file)
    total, tokens = 0.0, 0
    for text in general_texts(text_file):
        ids = torch.tensor(Encoder(backbone).prompt_ids(text))
        first = len(ids) // 4
        logits = backbone.model(input_ids=ids[None]).logits[0]
        total += float(functional.cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum"))
        tokens += len(ids) - first
    found = measured(attached, general, "lora")
    assert found.tokens == tokens
    assert found.before == pytest.approx(total / tokens, abs=1e-4)
    assert found.change == pytest.approx(0, abs=1e-6)


def test_noise_forgets(text_file: str) -> None:
    _, attached, general = opened("tiny-decoder", text_file)
    adapter = attached.add("trial", [build_method("full")], 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert general.measure("trial").change > 0.5


def test_an_encoders_masked_words_are_read_by_its_pretrained_head(text_file: str) -> None:
    from transformers import AutoModelForMaskedLM

    backbone, attached, general = opened("tiny-encoder", text_file, ("a", "b"))
    whole = AutoModelForMaskedLM.from_pretrained(resolve("tiny-encoder"), dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for text in general_texts(text_file):
        ids = torch.tensor(Encoder(backbone).prompt_ids(text))
        places = hidden_places(len(ids))
        asked = ids.clone()
        asked[places] = backbone.processor.mask_token_id
        with torch.no_grad():
            logits = whole(input_ids=asked[None]).logits[0, places]
        total += float(functional.cross_entropy(logits, ids[places], reduction="sum"))
        tokens += len(places)
    found = measured(attached, general, "lora")
    assert (found.before, found.tokens) == (pytest.approx(total / tokens, abs=1e-4), tokens)
    assert found.change == pytest.approx(0, abs=1e-6)
    # virtual tokens move the hidden places; read at the old ones, the loss would be that of other words
    assert abs(measured(attached, general, "prompt").change) < 1.0


def test_an_encoder_decoder_fills_spans(text_file: str) -> None:
    _, attached, general = opened("tiny-seq2seq", text_file)
    found = measured(attached, general, "ia3")
    assert found.change == pytest.approx(0, abs=1e-6)
    assert 0 < found.before < 9.1  # below that of guessing among the vocabulary, log 8,192 = 9.01


def test_where_it_has_no_meaning(text_file: str) -> None:
    assert "no text" in opened("tiny-vit", text_file, ("a", "b"))[2].reason
    assert "no head" in opened("tiny-decoder", text_file, ("a", "b"))[2].reason


def test_the_packages_text() -> None:
    texts = general_texts()
    assert len(texts) >= 30
    assert len(set(texts)) == len(texts)
    assert all(40 <= len(text.split()) <= 100 for text in texts)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        general_texts(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no text"):
        general_texts(str(tmp_path / "empty.txt"))


@given(st.integers(8, 300), st.integers(1, 20))
def test_spans_can_be_put_back(length: int, many: int) -> None:
    ids, marks = tuple(range(length)), [1000 + i for i in range(many)]
    prompt, answer = cut_spans(ids, marks)
    spans: dict[int, list[int]] = {}
    for token in answer:
        if token >= 1000:
            spans[token] = last = []
        else:
            last.append(token)
    assert 1 <= len(spans) <= many
    assert all(1 <= len(span) <= 3 for span in spans.values())
    whole = [token for item in prompt for token in (spans[item] if item >= 1000 else [item])]
    assert tuple(whole) == ids
    assert prompt[0] == 0
    assert prompt[-1] == length - 1
