"""A method of another package, one file that nothing here has heard of: it trains, merges, is exported to peft and imported
again, and passes the conformance suite."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dollartune.methods.registry as registry
from dollartune.attachment.adapter import Adapter
from dollartune.backbones.loading import Backbone
from dollartune.cli.app import app
from dollartune.errors import UserError
from dollartune.export.directory import load_adapter
from dollartune.export.peft_format import read_peft, write_peft
from dollartune.testing import MethodSuite, tiny_backbone
from dollartune.testing.practice import by_site, perturb

PLUGIN = Path(__file__).with_name("loha_plugin.py")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The file as an installed package, as far as Python can tell: a module and its entry point."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(PLUGIN, folder / "loha_plugin.py")
    info = folder / "loha-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loha\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[dollartune.methods]\nloha = loha_plugin:LoHa\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    registry.methods.cache_clear()
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("loha_plugin", None)
    registry.methods.cache_clear()


class TestLoHa(MethodSuite):
    """The suite, in which the method is built once it is installed."""

    @pytest.fixture(autouse=True)
    def _built(self, installed: None) -> None:
        type(self).method = registry.build_method("loha(rank=2, dropout=0.2)")


def _adapter(backbone: Backbone, *others: Any) -> Adapter:
    adapter = Adapter([registry.build_method("loha(rank=2)"), *others], backbone.anatomy, backbone.model, seed=1)
    perturb(adapter, 0.05, seed=2)
    return adapter


def _backbone(name: str) -> Backbone:
    tiny = tiny_backbone(name)
    return Backbone(name, tiny.model, None, tiny.anatomy, tiny.objective)


@pytest.mark.parametrize("family", ["opt", "llama", "t5", "bert", "vit"])
def test_its_tensors_go_to_peft_and_come_back(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    backbone = _backbone(family)
    adapter = _adapter(backbone)
    written = write_peft(tmp_path / "peft", backbone, adapter)
    assert written.peft_type == "LOHA"
    assert written.peft_difference is not None
    again, _ = read_peft(tmp_path / "peft", backbone)
    ours, theirs = by_site(adapter), by_site(again)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_beside_a_head_and_a_norm_its_modules_are_told_apart(tmp_path: Path) -> None:
    backbone = _backbone("opt/classification")
    adapter = _adapter(backbone, registry.build_method("norm"), registry.build_method("head"))
    write_peft(tmp_path / "peft", backbone, adapter)
    again, _ = read_peft(tmp_path / "peft", backbone)
    assert {method.name for method in again.methods} == {"loha", "norm", "head"}


def test_a_module_that_nothing_here_trains_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    backbone = _backbone("llama")
    write_peft(tmp_path / "peft", backbone, _adapter(backbone))
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(99, 32)
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"embed_tokens\.weight"):
        read_peft(tmp_path / "peft", backbone)


def test_from_a_study_to_peft_and_back_by_the_command_line(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"""
backbone: tiny-decoder
task: demo_library
methods: [loha]
scales: [16]
seeds: 1
training: {{epochs: 1, max_length: 48, validation_rows: 4}}
evaluation: {{rows: 4, free_generation: false, forgetting: false, inference_cost: false}}
keep_adapters: all
output: {tmp_path / "studies"}
"""
    )

    def command(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    command("run", str(study))
    (adapter,) = (tmp_path / "studies").rglob("adapter/adapter.json")
    said = command("export", str(adapter.parent), "--format", "peft", "--out", str(tmp_path / "peft"))
    assert "0.0e+00" in said, "the difference of logits, by the peft library or by us"
    command("import", str(tmp_path / "peft"), "--backbone", "tiny-decoder", "--out", str(tmp_path / "back"))
    from dollartune.backbones.loading import load_backbone

    backbone = load_backbone("tiny-decoder")
    first, second = (load_adapter(folder, backbone).tensors() for folder in (adapter.parent, tmp_path / "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
