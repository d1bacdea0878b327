"""What was tuned on a GPU is asked on it: `predict`, `evaluate` and `serve` choose the device as tuning does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.export import opening
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.lora import LoRA
from dollartune.serve import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backbone = load_backbone("tiny-decoder")
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model, 0)
    task = {"name": "moods", "kind": "classification", "prompt": "{text}", "metric": "accuracy",
            "label_words": {"good": "good", "bad": "bad"}, "max_answer_tokens": 4}  # fmt: skip
    info = {"backbone": "tiny-decoder", "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
    save_adapter(tmp_path / "adapter", adapter, {**info, "task": task})
    return tmp_path / "adapter"


def test_an_adapter_is_asked_where_it_would_be_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Any] = []
    loaded = opening.load_backbone

    def load(*args: Any, device: Any, **more: Any) -> Any:
        placed.append(device)
        return loaded(*args, **more)

    monkeypatch.setattr(opening, "load_backbone", load)
    monkeypatch.setattr(opening, "default_device", lambda: torch.device("cuda"))
    opening.open_adapter(folder)
    opening.open_backbone({"backbone": "tiny-decoder", "objective": "language"})  # to be merged or exported
    assert placed == [torch.device("cuda"), "cpu"]


@pytest.mark.parametrize(("asked", "wanted"), [(None, "meta"), ("cpu", "cpu")])
def test_a_server_runs_on_the_gpu_if_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, wanted: str
) -> None:
    placed: list[str] = []
    monkeypatch.setattr(run, "default_device", lambda: torch.device("meta"))  # stands for a GPU

    def service(backbone: Any, *_: object) -> Any:
        placed.append(backbone.device.type)
        return type("Served", (), {"add_now": lambda *_: None})()

    monkeypatch.setattr(run, "Service", service)
    run.build_service("tiny-decoder", {"moods": folder}, None, device=asked)  # type: ignore[arg-type]
    assert placed == [wanted]
