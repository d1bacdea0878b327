"""The backbones that ship with the package load with transformers alone and know more than random weights do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from dollartune.backbones.embedded import embedded_names, embedded_path
from dollartune.errors import UserError

TEXT = ("tiny-decoder", "tiny-encoder", "tiny-seq2seq")
LIMIT_BYTES = 45 * 1000 * 1000

SNIPPET = (
    "Return the number of rows that have a missing value. If the given column is not in the table, an error is raised. "
    "The default is to use all of the columns, and a list of names can be passed to use only some of them."
)
"""Written for this test; it stands in no library."""


def nll(model: Any, tokenizer: Any, name: str) -> float:
    """Mean negative log-likelihood per predicted token of the snippet, nats."""
    ids = tokenizer(SNIPPET, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        if name == "tiny-decoder":
            return float(model(input_ids=ids, labels=ids).loss)
        if name == "tiny-encoder":
            labels = torch.full_like(ids, -100)
            labels[:, 3::6] = ids[:, 3::6]
            labels[:, -1] = -100
            inputs = torch.where(labels != -100, tokenizer.mask_token_id, ids)
            return float(model(input_ids=inputs, labels=labels).loss)
        words = SNIPPET.split()
        cut = {4, 5, 13, 21, 22, 30}
        first = [f"<extra_id_{sorted(cut).index(i)}>" if i in cut else word for i, word in enumerate(words)]
        target = " ".join(f"<extra_id_{index}> {words[place]}" for index, place in enumerate(sorted(cut)))
        source = tokenizer(" ".join(first), return_tensors="pt")["input_ids"]
        return float(model(input_ids=source, labels=tokenizer(target, return_tensors="pt")["input_ids"]).loss)


AUTO: dict[str, Any] = {
    "tiny-decoder": AutoModelForCausalLM,
    "tiny-encoder": AutoModelForMaskedLM,
    "tiny-seq2seq": AutoModelForSeq2SeqLM,
}
THRESHOLD = {"tiny-decoder": 3.5, "tiny-encoder": 3.5, "tiny-seq2seq": 4.5}


def test_all_four_ship() -> None:
    assert embedded_names() == ("tiny-decoder", "tiny-encoder", "tiny-seq2seq", "tiny-vit")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="tiny-decoder"):
        embedded_path("tiny-decodr")


def test_together_within_the_size_limit() -> None:
    files = [path for name in embedded_names() for path in embedded_path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", TEXT)
def test_text_backbone_beats_random_weights(name: str) -> None:
    folder = embedded_path(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = nll(AUTO[name].from_pretrained(folder, dtype=torch.float32).eval(), tokenizer, name)
    torch.manual_seed(0)
    random = nll(AUTO[name].from_config(AutoConfig.from_pretrained(folder)).float().eval(), tokenizer, name)
    assert trained < THRESHOLD[name] < random


@pytest.mark.parametrize("name", embedded_names())
def test_stored_in_bfloat16_with_a_card(name: str) -> None:
    folder: Path = embedded_path(name)
    model = AutoModel.from_pretrained(folder, dtype="auto")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert "held-out" in (folder / "README.md").read_text().lower()


@pytest.mark.parametrize("name", TEXT)
def test_tokenizer_round_trips_and_has_its_marks(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_path(name))
    text = "Summary: naïve café, x = 10\n    return [y ** 2]"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == text
    assert len(tokenizer) == AutoConfig.from_pretrained(embedded_path(name)).vocab_size
    ends = {"tiny-decoder": (1, None), "tiny-encoder": (1, 2), "tiny-seq2seq": (None, 2)}[name]
    assert ends[0] is None or ids[0] == ends[0]
    assert ends[1] is None or ids[-1] == ends[1]
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("name", TEXT)
def test_label_words_are_single_tokens(name: str) -> None:
    from dollartune.tasks.docstrings import LIBRARIES

    tokenizer = AutoTokenizer.from_pretrained(embedded_path(name))
    for word in (*LIBRARIES, "yes", "no", "positive", "negative"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_vision_backbone_separates_digits_it_has_not_seen() -> None:
    """A linear probe on frozen features of four new digits, trained on the train block, tested on the test block."""
    from sklearn.linear_model import LogisticRegression

    from dollartune.tasks.digits import demo_digits_new

    folder = embedded_path("tiny-vit")
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    rows = demo_digits_new().load()

    def features(split: str) -> Any:
        images = [example.fields["image"] for example in rows[split]]  # type: ignore[index]
        with torch.no_grad():
            return model(**processor(images=images, return_tensors="pt")).last_hidden_state[:, 0].numpy()

    train, test = ([example.label for example in rows[split]] for split in ("train", "test"))
    probe = LogisticRegression(max_iter=2000).fit(features("train"), train)
    assert probe.score(features("test"), test) > 0.85


def test_a_backbone_can_come_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dollartune.backbones.locate import packaged, resolve

    model = tmp_path / "some_package" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    (model / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert Path(resolve("package:some_package/model")) == packaged("package:some_package/model") == model
    with pytest.raises(UserError, match="no folder 'elsewhere'"):
        resolve("package:some_package/elsewhere")
    with pytest.raises(UserError, match="pip install no-such-package"):
        resolve("package:no_such_package/model")
