"""A solved probe as a head for scikit-learn and torch: the card's program answers as `predict` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_rows
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.export.handover import export_adapter
from dollartune.export.opening import open_adapter
from dollartune.methods.base import Method
from dollartune.methods.features import LabelledFeatures
from dollartune.methods.knn import KNN
from dollartune.methods.linear_probe import LinearProbe
from dollartune.methods.lora import LoRA
from dollartune.methods.tfidf_probe import TfidfProbe
from dollartune.testing.directory import write_tiny

LABELS = {"a": "yes", "b": "no", "c": "w3"}


def solved(root: Path, family: str, method: Method[Any], labels: int, prompt: str) -> Path:
    """An adapter whose method was solved on random features and tokens."""
    words = dict(list(LABELS.items())[:labels])
    backbone = load_backbone(str(write_tiny(root / "model", family)), "classification", tuple(words))
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    if adapter.readout is not None:
        generator = torch.Generator().manual_seed(0)
        width = adapter.readout.mean.shape[0]
        rows = LabelledFeatures(
            torch.randn(60, width, generator=generator), torch.arange(60) % labels, labels, 0,
            torch.randint(4, 60, (60, 12), generator=generator).tolist(),
        )  # fmt: skip
        method.solve(adapter.readout, rows)
    task = {
        "name": "colours", "kind": "classification", "prompt": prompt, "label_words": words, "metric": "accuracy",
        "max_answer_tokens": 4,
    }  # fmt: skip
    info = {
        "backbone": backbone.name, "objective": "classification", "tokenizer": tokenizer_hash(backbone.processor),
        "task": task, "max_length": 24,
    }  # fmt: skip
    save_adapter(root / "adapter", adapter, info)
    return root / "adapter"


def image_model(folder: Path, channels: int) -> Path:
    """A tiny ViT with its image processor."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        num_channels=channels, num_labels=3, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    half = [0.5] * channels
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=half, image_std=half)
    processor.save_pretrained(folder)
    return folder


def printed(code: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[float]]:
    capsys.readouterr()
    exec(code, {})
    label, _, probabilities = capsys.readouterr().out.strip().partition(" ")
    return label, json.loads(probabilities)


TEXTS = [
    ("bert/classification", lambda: LinearProbe(pooling="deep"), 3, "w1 {text}"),
    ("bert/classification", lambda: TfidfProbe(pooling="none"), 2, "w1 {text} {more}"),
    ("llama/classification", LinearProbe, 2, "w1 {text}"),
    ("llama/classification", lambda: TfidfProbe(first_tokens=4), 3, "w1 {text} w2 {more} w5 {last}"),
    ("bart/classification", lambda: LinearProbe(pooling="mean+last"), 3, "{text}"),
]


@pytest.mark.parametrize(("family", "method", "labels", "prompt"), TEXTS)
def test_the_program_of_the_card_answers_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str, method: Any,
    labels: int, prompt: str,
) -> None:  # fmt: skip
    folder = solved(tmp_path, family, method(), labels, prompt)
    lines = export_adapter(folder, tmp_path / "out", "head").lines
    assert any(line.startswith("scikit-learn, torch: yes") for line in lines)
    monkeypatch.chdir(tmp_path / "out")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    columns = [name for name in ("text", "more", "last") if f"{{{name}}}" in prompt]
    rows = [{name: f"w{5 * i + k} w{3 * i + 2} w{40 - i}" for k, name in enumerate(columns)} for i in range(10)]
    rows.append({name: " ".join(f"w{i}" for i in range(30)) for name in columns})  # longer than max_length
    expected = predict_rows(open_adapter(folder), rows)
    for row, one in zip(rows, expected, strict=True):
        asked = code
        for text in row.values():
            asked = asked.replace('"..."', json.dumps(text), 1)
        label, probabilities = printed(asked, capsys)
        assert label == one.predicted
        assert probabilities == pytest.approx(list((one.probabilities or {}).values()), abs=1e-4)
    assert len({one.predicted for one in expected}) > 1


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_pictures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], channels: int, mode: str
) -> None:
    model = image_model(tmp_path / "model", channels)
    backbone = load_backbone(str(model), "classification", tuple(LABELS))
    method = LinearProbe(pooling="deep")
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    assert adapter.readout is not None
    width = adapter.readout.mean.shape[0]
    generator = torch.Generator().manual_seed(0)
    method.solve(
        adapter.readout, LabelledFeatures(torch.randn(30, width, generator=generator), torch.arange(30) % 3, 3, 0, None)
    )
    task = {
        "name": "marks", "kind": "classification", "prompt": None, "label_words": LABELS, "metric": "accuracy",
        "max_answer_tokens": 4,
    }  # fmt: skip
    info = {"backbone": str(model), "objective": "classification", "task": task}
    save_adapter(tmp_path / "adapter", adapter, info)
    export_adapter(tmp_path / "adapter", tmp_path / "out", "head")
    monkeypatch.chdir(tmp_path / "out")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    assert f'convert("{mode}")' in code
    tuned = open_adapter(tmp_path / "adapter")
    for seed in range(3):
        image = Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=numpy.uint8))
        image.save("picture.png")
        (one,) = predict_rows(tuned, [{"image": image}])
        label, probabilities = printed(code, capsys)
        assert label == one.predicted
        assert probabilities == pytest.approx(list((one.probabilities or {}).values()), abs=1e-4)


@pytest.mark.parametrize("method", [lambda: KNN(k=3), lambda: LoRA(rank=2)])
def test_what_is_no_linear_head_is_refused_with_what_there_is(tmp_path: Path, method: Any) -> None:
    folder = solved(tmp_path, "bert/classification", method(), 2, "{text}")
    with pytest.raises(UserError, match=r"knn is not linear|lora changes the backbone") as refused:
        export_adapter(folder, tmp_path / "out", "head")
    assert "dollartune predict" in str(refused.value.hint)
    assert "dollartune serve: yes" in refused.value.message
    assert not (tmp_path / "out").exists()


def test_a_head_that_gives_other_scores_is_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = solved(tmp_path, "bert/classification", LinearProbe(), 2, "{text}")
    from dollartune.methods.linear_probe import Probe

    right = Probe.linear
    monkeypatch.setattr(
        Probe, "linear", lambda self: {**right(self), "bias": right(self)["bias"] + torch.tensor([0.1, 0.0])}
    )
    with pytest.raises(UserError, match="the written head does not give what the adapter gives"):
        export_adapter(folder, tmp_path / "out", "head")
    assert not (tmp_path / "out").exists()
