"""What version 0.1 left still opens: its study file, its records, its adapter.

`version_0_1/` was made by DollarTune 0.1.0, by `dollartune run library.yaml --no-report`, and `predicted.jsonl` by its
`dollartune predict ADAPTER rows.jsonl`. Never write these files anew with a later version.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dollartune import Study, open_adapter, open_study
from dollartune.cli import main
from dollartune.evaluate.predict import predict_rows

LEFT = Path(__file__).parent / "version_0_1"
TOLERANCE = 0.02
"""On probabilities: 0.1 scored in bfloat16 (3 digits); a processor without it, or with another order of sums, differs."""


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what 0.1 left, as the working folder: opening may write beside it."""
    shutil.copytree(LEFT, tmp_path / "left")
    monkeypatch.chdir(tmp_path / "left")
    return tmp_path / "left"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dollartune", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def recorded() -> dict[str, dict[str, Any]]:
    """Trial -> the record as 0.1 wrote it."""
    return {
        path.parent.name: json.loads(path.read_text()) for path in sorted(LEFT.glob("studies/*/trials/*/record.json"))
    }


def test_its_results_are_read(left: Path) -> None:
    results = open_study(left / "studies" / "library")
    by_label = {row["label"]: row for row in results.frame().to_dict("records")}
    assert len(by_label) == 2
    for record in recorded().values():
        row = by_label[record["trial"]["label"]]
        assert row["score"] == pytest.approx(record["score"])
        assert row["seconds"] == pytest.approx(record["cost"]["seconds"])
        assert row["trainable"] == record["parameters"]["trainable"]
    assert set(results.leaderboard()["method"]) == {"bitfit", "lora"}
    for identifier in recorded():
        assert len(results.predictions(identifier)) == 16


def test_its_status_and_report_are_written(
    left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "status", "studies/library", "--json")
    status = json.loads(capsys.readouterr().out)
    assert (status["done"], status["failed"]) == (2, 0)
    command(monkeypatch, "report", "studies/library")
    assert "bitfit" in (left / "studies" / "library" / "report" / "report.md").read_text()


def test_its_adapter_predicts_as_it_did(left: Path) -> None:
    (folder,) = (left / "studies").glob("*/trials/*/adapter")
    rows = [json.loads(line) for line in (left / "rows.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (left / "predicted.jsonl").read_text().splitlines()]
    for prediction, then in zip(predict_rows(open_adapter(folder), rows), before, strict=True):
        assert prediction.probabilities == pytest.approx(then["probabilities"], abs=TOLERANCE)


def test_its_study_file_goes_on_from_its_records(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(left / "library.yaml", output=str(left / "studies"))
    assert {trial.identifier for trial in study.trials()} == set(recorded())
    study.run()
    assert "2 of 2 trials have their record already" in capsys.readouterr().out
    for identifier in recorded():
        path = Path("studies", "library", "trials", identifier, "record.json")
        assert path.read_bytes() == (LEFT / path).read_bytes(), "the record of 0.1 stays as it was"
