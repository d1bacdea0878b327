"""The method that the documentation adds, in one file outside the package, reaches everything that a method reaches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from blocks import ROOT, blocks
from commands import Command
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.methods.registry import methods
from dollartune.study.api import Study

pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files, installed as far as Python can tell: modules and their entry points."""
    info = tmp_path / "gain-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gain\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[dollartune.methods]\ngain = gain:Gain\n")
    for block in blocks(ROOT / "docs" / "add-method.md"):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    methods.cache_clear()
    yield tmp_path
    methods.cache_clear()
    sys.modules.pop("gain", None)


def test_it_is_listed_has_a_page_and_takes_part_in_a_study(package: Path) -> None:
    listed = CliRunner().invoke(app, ["methods", "ls", "--json"])
    assert '"gain"' in listed.output
    written = CliRunner().invoke(app, ["docs", "--out", str(package / "pages")])
    assert written.exit_code == 0, written.output
    page = (package / "pages" / "methods" / "gain.md").read_text()
    assert "h ← (1 + g) ⊙ f(h)" in page, "its equation"
    assert "<svg" in page
    assert "`where` | text | `self_attn mlp`" in page
    assert "| tiny-decoder | 8 | 2,048 |" in page, "its count"
    assert "(gain.md)" in (package / "pages" / "methods" / "index.md").read_text()
    study = Study(
        backbone="tiny-decoder",
        task="demo_library",
        methods=["gain"],
        scales=[8],
        seeds=1,
        training={"epochs": 1, "max_length": 48, "validation_rows": 4},
        evaluation={"rows": 8, "free_generation": False},
        output=str(package / "studies"),
    )
    (row,) = study.run().leaderboard().to_dict("records")
    assert (row["method"], row["trainable"]) == ("gain", 2_048)


def test_it_passes_the_conformance_suite(package: Path) -> None:
    words = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib", "test_gain.py")
    code, out, error = Command(*words, folder=package, program=commands.pytest).ended(600)
    assert code == 0, out[-3000:] + error[-3000:]
    assert "passed" in out
