"""The command line in this process."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dollartune.cli import main
from dollartune.study import startup


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dollartune", *map(str, arguments)])
        # A command's process begins with it; this one is as old as the tests before, which a budget would be charged for.
        began = time.monotonic()
        monkeypatch.setattr(startup, "_began", lambda: began)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def study_file(study_of: Any, tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        path = tmp_path / "moods.yaml"
        path.write_text(yaml.safe_dump(study_of(**changes), sort_keys=False))
        return path

    return write
