"""Edited data and weights under the same name are another trial."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dollartune.backbones.content_hash import of_backbone
from dollartune.fingerprint import fingerprint
from dollartune.study_file import load_study
from dollartune.trials.content_hash import of_task
from dollartune.trials.expand import plan


def identifiers(settings: dict[str, Any]) -> list[str]:
    return [trial.identifier for trial in plan(load_study(settings))[0]]


def test_edited_data_is_another_trial(study_of: Any, reviews: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.csv"
    shutil.copy(reviews, data)
    settings = study_of(methods=["bitfit"], task={"data": str(data), "prompt": "{text}. Mood:", "label": "mood"})
    before = identifiers(settings)
    assert identifiers(settings) == before
    data.write_text(data.read_text().replace("lovely", "lively"))
    assert identifiers(settings) != before


def test_other_weights_in_the_same_folder_are_another_trial(study_of: Any, local_backbone: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(local_backbone("llama"), folder)
    settings = study_of(methods=["bitfit"], backbone=str(folder))
    before = identifiers(settings)
    (folder / "README.md").write_text("words change no result")
    assert identifiers(settings) == before
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identifiers(settings) != before


def test_a_folder_is_its_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("2")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(tmp_path) != first


def test_large_files_are_remembered_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    large = tmp_path / "large.safetensors"
    large.write_bytes(b"x" * (5 << 20))
    first = fingerprint(large)
    assert first in (tmp_path / "cache" / "dollartune" / "fingerprints.json").read_text()
    large.write_bytes(b"y" * (5 << 20) + b"z")
    assert fingerprint(large) != first


def test_what_is_no_local_file_has_none(tmp_path: Path) -> None:
    assert of_backbone("facebook/opt-125m") is None
    assert of_backbone("tiny-decoder") is not None
    assert of_task("boolq", None) == {}
    assert of_task({"preset": "boolq", "prompt": "{question}"}, tmp_path) == {}
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "train.jsonl").write_text("{}")
    assert set(of_task("boolq", tmp_path)) == {"boolq"}
