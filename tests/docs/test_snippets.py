"""Every command and snippet of the documentation and the README is run, or says why it is not.

All pages share one folder, in which the start page's study is run first; others use its adapter.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT, Block, blocks
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.config import StudySettings
from dollartune.study_file import load_study, read_yaml
from dollartune.trials.trial import ablated, variants

pytestmark = pytest.mark.xdist_group("docs")

PAGES = sorted(
    path for path in (ROOT / "docs").glob("*.md") if path.name not in ("study-file.md", "api.md", "results.md")
)
SMALLER = {
    "scales=[100], seeds=1": 'scales=[8], seeds=1, training={"epochs": 1}, evaluation={"rows": 8}',
    'budget="2 min"': 'budget="2 min", search=2',
}
"""What is run in place of what is printed, so that a test takes seconds."""
README_WORDS = {
    "init DATA": "init reviews.csv --out other.yaml",
    "STUDY.yaml": "study.yaml",
    "STUDY": "studies/study",
    "ADAPTER": "$ADAPTER",
    "DATA": "reviews.csv",
    "TASK": "reviews.csv",
    "BACKBONE": "tiny-decoder",
    "'5 min'": "'25 s'",
    "MODEL": "tiny-decoder",
    "--out DIR": "--out exported",
}
"""Placeholders of the README's table -> what stands for them here."""


def call(command: str) -> str:
    """What one `dollartune` command prints, run in this process; fails with that where the command fails."""
    words = shlex.split(os.path.expandvars(command))
    assert words[0] == "dollartune", f"only dollartune's own commands can be run here, not {command!r}"
    outcome = CliRunner().invoke(app, words[1:])
    assert outcome.exit_code == 0, f"{command}\n{outcome.output}\n{outcome.exception!r}"
    return outcome.output


def run(block: Block, names: dict[str, Any]) -> None:
    """Does with a block what a reader would do."""
    if block.title is not None:
        Path(block.title).write_text(block.code)
    if block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            output = call(line)
            if found := re.search(r"^adapter \(.*\): (.+)$", output, re.M):
                os.environ["ADAPTER"] = found[1]
    elif block.language == "yaml":
        settings = load_study(read_yaml(block.code, block.page))
        assert isinstance(settings, StudySettings)
        assert [*variants(settings.methods), *ablated(variants(settings.methods), settings.ablations)]
    elif block.language == "toml":
        assert tomllib.loads(block.code)
    elif block.language == "python" and block.title is None:
        code = block.code
        for printed, smaller in SMALLER.items():
            code = code.replace(printed, smaller)
        exec(compile(code, block.page, "exec"), names)
    elif block.language == "python":
        compile(block.code, block.title or "", "exec")
    else:
        assert block.language in ("csv", "text"), (
            f"a block of {block.language!r} cannot be checked: {block.code[:60]!r}"
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the start page has been followed."""
    folder, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    os.chdir(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr("dollartune.study.startup.seconds_since_start", lambda: 0.0)  # this process is older than a command
    try:
        names: dict[str, Any] = {}
        for block in blocks(ROOT / "docs" / "index.md"):
            if block.reason is None:
                run(block, names)
        yield folder
    finally:
        patch.undo()
        os.chdir(before)
        os.environ.pop("ADAPTER", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER", os.environ["ADAPTER"])  # what a page tunes is that page's
    names: dict[str, Any] = {}
    for block in blocks(page) if page.name != "index.md" else ():
        if block.reason is None:
            run(block, names)
    assert all(block.reason is None or len(block.reason) > 10 for block in blocks(page)), "say why it is not run"


def test_the_start_page_leaves_an_adapter_and_a_report(workplace: Path) -> None:
    assert Path(os.environ["ADAPTER"]).is_dir()
    assert (workplace / "studies" / "study" / "report").is_dir()
    assert (workplace / "tuned").is_dir()


def readme_commands() -> list[str]:
    """Commands in the first column of the README's table."""
    rows = re.findall(r"^\| (`dollartune .*?`(?:, `.*?`)*) \|", (ROOT / "README.md").read_text(), re.M)
    commands = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text if text.startswith("dollartune ") else f"dollartune {text}" for text in commands]


def test_the_readme_has_a_table_of_commands() -> None:
    assert len(readme_commands()) >= 15


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_runs(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if " serve " in command:
        command = "dollartune serve --help"  # a server runs until it is stopped; tests/serve starts one
    if command.endswith(" plan STUDY.yaml"):
        command = "dollartune plan study.yaml --machine cpu-2"  # without measuring this machine first
    for word, stands_for in README_WORDS.items():
        command = command.replace(word, stands_for)
    if "--engine ray" in command:
        monkeypatch.setenv("RAY_ADDRESS", "local")  # not a cluster that other tests have just started
    assert call(command).strip(), "a command says what it did"


def test_the_readmes_study_and_python_work(workplace: Path) -> None:
    import torch

    from dollartune import load_backbone

    backbone = load_backbone("tiny-decoder")
    ids = backbone.processor("import numpy", return_tensors="pt").input_ids
    names: dict[str, Any] = {"model": backbone.model, "ids": ids, "mask": torch.ones_like(ids)}
    found = [block for block in blocks(ROOT / "README.md") if block.language in ("yaml", "python")]
    assert {block.language for block in found} == {"yaml", "python"}
    for block in found:
        run(block, names)
