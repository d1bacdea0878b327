"""A study may begin with a tuned adapter, an imported one too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dollartune.attachment import Adapter
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.engines.begin_with import Beginning, begin_with
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.export.directory import save_adapter, tokenizer_hash
from dollartune.methods.base import Method
from dollartune.methods.full import Full
from dollartune.methods.gates import Gated
from dollartune.methods.head import Head
from dollartune.methods.ia3 import IA3
from dollartune.methods.intrinsic import Intrinsic
from dollartune.methods.linear_probe import LinearProbe
from dollartune.methods.lora import LoRA
from dollartune.methods.parallel import Parallel
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.vera import VeRA
from dollartune.report.contents import collect
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.testing.directory import write_tiny
from dollartune.testing.practice import perturb
from dollartune.trials.expand import plan


class Noted(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if "begins" in text:
            self.notes.append(text)


def test_trials_of_the_same_methods_begin_with_it(study_of: Any, moods: Any, tmp_path: Path) -> None:
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
    assert not begin_with(tmp_path / "tuned", other, backbone, moods).begun
    assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())


def tuned(folder: Path, backbone: Backbone, *methods: Method[Any], labels: str = "good bad", **info: Any) -> Adapter:
    """A stored adapter of these methods."""
    adapter = Adapter(methods, backbone.anatomy, backbone.model, seed=3)
    perturb(adapter, 0.1, 0)
    task = {"name": "moods", "prompt": "{text}", "label_words": dict.fromkeys(labels.split(), "w")}
    save_adapter(folder, adapter, {"backbone": backbone.name, "objective": backbone.objective, "task": task, **info})
    return adapter


def begun(folder: Path, backbone: Backbone, task: Any, *methods: Method[Any]) -> tuple[Beginning, Adapter]:
    adapter = Adapter(methods, backbone.anatomy, backbone.model, seed=4)
    return begin_with(folder, adapter, backbone, task), adapter


def test_offsets_of_labels_are_left_and_that_is_said(backbone: Backbone, moods: Any, tmp_path: Path) -> None:
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    perturb(adapter, 0.1, 0)
    before = adapter.tensors()
    adapter.shift_labels([0.5, -0.5])
    save_adapter(tmp_path / "tuned", adapter, {"backbone": backbone.name, "objective": "language"})
    beginning, new = begun(tmp_path / "tuned", backbone, moods, LoRA(rank=2))
    assert beginning.begun
    assert "without what is added to its scores of labels" in beginning.remark
    assert new.tensors().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.tensors().items())


OTHER_FUNCTIONS: dict[str, tuple[Method[Any], Method[Any]]] = {
    "scale 16.0, not 8.0": (LoRA(rank=2, alpha=32.0), LoRA(rank=2)),
    "scale 11.3": (LoRA(rank=2, rank_stabilized=True), LoRA(rank=2)),
    "projection_seed 1, not 0": (VeRA(rank=8, projection_seed=1), VeRA(rank=8)),
    "another projection": (Intrinsic(dimension=20, projection_seed=1), Intrinsic(dimension=20)),
    "after_first": (PromptTuning(tokens=2, placement="after_first"), PromptTuning(tokens=2, placement="before")),
    "OutputScale, not InputScale": (
        IA3(where="self_attn.o", scale_inputs="mlp.down"), IA3(where="self_attn.o", scale_inputs="self_attn.o"),
    ),
    "inner.scale 16.0, not 8.0": (Gated(inner="lora(rank=2, alpha=32)"), Gated(inner="lora(rank=2)")),
}  # fmt: skip


@pytest.mark.parametrize("difference", OTHER_FUNCTIONS)
def test_equal_tensors_of_another_function_are_no_beginning(
    backbone: Backbone, moods: Any, tmp_path: Path, difference: str
) -> None:
    then, now = OTHER_FUNCTIONS[difference]
    tuned(tmp_path / "tuned", backbone, then)
    beginning, new = begun(tmp_path / "tuned", backbone, moods, now)
    assert not beginning.begun
    assert difference in beginning.remark
    assert "adapter.json" in beginning.remark
    fresh = Adapter([now], backbone.anatomy, backbone.model, seed=4).tensors()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in new.tensors().items())


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (LoRA(rank=2, lr=1e-3, dropout=0.1), LoRA(rank=2, lr_ratio=16.0, weight_decay=0.1)),
        # as an import writes it
        (LoRA(rank=9, rank_pattern={"*": 2}, alpha_pattern={"*": 4.0}, layers="0,1,2"), LoRA(rank=2, alpha=4.0)),
        (Parallel(reduction=4), Parallel(size=8)),
    ],
)
def test_settings_that_change_no_function_are_a_beginning(
    backbone: Backbone, moods: Any, tmp_path: Path, then: Method[Any], now: Method[Any]
) -> None:
    stored = tuned(tmp_path / "tuned", backbone, then).tensors()
    beginning, new = begun(tmp_path / "tuned", backbone, moods, now)
    assert beginning == Beginning(True)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in new.tensors().items())


def test_a_head_is_taken_only_of_the_same_classes_in_their_order(moods: Any, tmp_path: Path) -> None:
    assert list(moods.labels) == ["bad", "good"]
    backbone = load_backbone(str(write_tiny(tmp_path / "model", "bert")), "classification", moods.labels)
    stored = tuned(tmp_path / "same", backbone, LoRA(rank=2), Head(), labels="bad good").tensors()
    beginning, new = begun(tmp_path / "same", backbone, moods, LoRA(rank=2), Head(lr=1e-3))
    assert beginning == Beginning(True)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in new.tensors().items())
    for labels in ("good bad", "yes no", ""):
        tuned(tmp_path / "other", backbone, LoRA(rank=2), Head(), labels=labels)
        beginning, new = begun(tmp_path / "other", backbone, moods, LoRA(rank=2), Head())
        assert beginning.begun
        assert f"with a new head, as its classes are {', '.join(labels.split()) or 'not known'}" in beginning.remark
        fresh = Adapter([LoRA(rank=2), Head()], backbone.anatomy, backbone.model, seed=4).tensors()
        for name, tensor in new.tensors().items():
            assert torch.equal(tensor, (stored if name.startswith("parts.0.") else fresh)[name])
        tuned(tmp_path / "all", backbone, Full(), labels=labels)
        beginning, _ = begun(tmp_path / "all", backbone, moods, Full())
        assert not beginning.begun, "it has the head in the same tensors"
        assert "its classes are" in beginning.remark


def test_an_adapter_of_another_backbone_is_no_beginning(backbone: Backbone, moods: Any, tmp_path: Path) -> None:
    twin = load_backbone(str(write_tiny(tmp_path / "twin", "llama")))
    tuned(tmp_path / "tuned", twin, LoRA(rank=2))
    copied = shutil.copytree(twin.name, tmp_path / "copied")
    assert begun(tmp_path / "tuned", load_backbone(str(copied)), moods, LoRA(rank=2))[0].begun
    weights = shutil.copytree(twin.name, tmp_path / "chat") / "model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    chat = load_backbone(str(tmp_path / "chat"))
    beginning, _ = begun(tmp_path / "tuned", chat, moods, LoRA(rank=2))
    assert beginning == Beginning(False, f"it was tuned on {twin.name}, not on {chat.name}")
    drawn = load_backbone(twin.name, random_weights_seed=2)
    tuned(tmp_path / "control", drawn, LoRA(rank=2), random_weights_seed=2)
    beginning, _ = begun(tmp_path / "control", twin, moods, LoRA(rank=2))
    assert "on random weights (seed 2)" in beginning.remark
    assert not beginning.begun


def test_what_is_solved_at_once_begins_with_nothing(study_of: Any, local_backbone: Any, tmp_path: Path) -> None:
    settings = study_of(backbone=str(local_backbone("bert")), methods=["linear_probe"])
    backbone = load_backbone(settings["backbone"], "classification", ("bad", "good"))
    tuned(tmp_path / "tuned", backbone, LinearProbe(), labels="bad good", tokenizer=tokenizer_hash(backbone.processor))
    begins = {**settings, "begin_with": str(tmp_path / "tuned")}
    with pytest.raises(UserError, match="linear_probe is solved on the rows at once and begins with nothing"):
        plan(load_study(begins))
    tuned(tmp_path / "lora", backbone, LoRA(rank=2), Head(), labels="bad good")
    noted = Noted()
    study = Study(
        {**settings, "methods": ["linear_probe", {"lora": {"rank": 2}}], "begin_with": str(tmp_path / "lora")}
    )
    records = {record.trial.label: record for record in study.run(display=noted).done()}
    assert [bool(record.training.begun_with) for _, record in sorted(records.items())] == [False, True]
    assert any("linear_probe is fitted to these rows at once" in note for note in noted.notes)
