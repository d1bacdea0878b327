"""A study may begin with a tuned adapter, an imported one too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dollartune.attachment import Adapter
from dollartune.backbones.loading import load_backbone
from dollartune.engines.adapters import begin_with
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.lora import LoRA
from dollartune.report.contents import collect
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.testing.practice import perturb
from dollartune.trials.expand import plan


class Noted(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if "begins" in text:
            self.notes.append(text)


def test_trials_of_the_same_methods_begin_with_it(study_of: Any, tmp_path: Path) -> None:
    settings = study_of(methods=[{"lora": {"rank": 2, "lr": 1e-12}}], keep_adapters="all")
    backbone = load_backbone(settings["backbone"])
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    info = {"backbone": settings["backbone"], "objective": "language", "tokenizer": tokenizer_hash(backbone.processor)}
    save_adapter(tmp_path / "tuned", adapter, info)
    methods = [{"lora": {"rank": 2, "lr": 1e-12}}, {"lora": {"rank": 3, "lr": 1e-12}}]
    noted = Noted()
    both = Study(
        {**settings, "methods": methods, "output": str(tmp_path / "both"), "begin_with": str(tmp_path / "tuned")}
    )
    records = {record.trial.methods[0]["rank"]: record for record in both.run(display=noted).done()}
    assert records[2].training.begun_with == str(tmp_path / "tuned")
    assert records[3].training.begun_with == "", "of another size: it began fresh, and says so"
    assert [("begins with" in note, "begins fresh" in note) for note in noted.notes] == [(True, False), (False, True)]
    assert any("rank=2" in note and "began with the adapter" in note for note in collect(both.results()).notes)
    with pytest.raises(UserError, match="no trial of this study could begin with"):
        plan(load_study({**settings, "methods": ["ia3"], "begin_with": str(tmp_path / "tuned")}))
    study = Study({**settings, "begin_with": str(tmp_path / "tuned")})
    assert study.run(display=Display()).done()
    (weights,) = Path(settings["output"]).rglob("adapter.safetensors")
    for name, tensor in load_file(weights).items():  # a learning rate of nothing leaves it where it began
        torch.testing.assert_close(tensor, adapter.tensors()[name], rtol=1e-4, atol=1e-6)
    first = plan(load_study({**settings, "begin_with": str(tmp_path / "tuned")}))[0]
    tensors = {name: tensor + 1 for name, tensor in load_file(tmp_path / "tuned" / "adapter.safetensors").items()}
    save_file(tensors, tmp_path / "tuned" / "adapter.safetensors")
    again = plan(load_study({**settings, "begin_with": str(tmp_path / "tuned")}))[0]
    plain = plan(load_study(settings))[0]
    assert len({trials[0].identifier for trials in (first, again, plain)}) == 3
    other = Adapter([LoRA(rank=4)], backbone.anatomy, backbone.model)
    before = other.tensors()
    assert not begin_with(tmp_path / "tuned", other, backbone)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())
