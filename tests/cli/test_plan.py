"""`dollartune plan` as users meet it: from configs alone, without data, weights or a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.errors import UserError
from dollartune.testing.directory import write_tiny

STUDY = """
backbone: ./tiny
task: rte
methods: [zero_shot, lora: {rank: [2]}]
scales: [100]
seeds: 2
budget: {seconds: 60, per: method}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path / "cache"))
    write_tiny(tmp_path / "tiny", "opt")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_named_machine_needs_neither_data_nor_weights(study: Path) -> None:
    (study.parent / "tiny" / "model.safetensors").unlink()
    found = json.loads(plan(str(study), "--machine", "a100-80gb", "--json"))
    assert found["machine"] == "a100-80gb"
    assert found["dollars_per_hour"] == pytest.approx(5.069)
    assert len(found["trials"]) == 3, "zero-shot once, lora for two seeds"
    lora = found["trials"][-1]
    assert lora["peak_bytes"] == sum(lora["memory_bytes"].values())
    assert lora["memory_bytes"]["optimizer"] == 2 * 4 * lora["trainable_parameters"]
    assert lora["seconds_range"][0] < lora["seconds"] < lora["seconds_range"][1]
    assert found["dollars"] == pytest.approx(found["seconds"] * 5.069 / 3600)
    assert any("without its data" in note for note in found["notes"])


def test_the_table_shows_parts_sum_and_budget(study: Path) -> None:
    text = plan(str(study), "--machine", "t4", "--price", "3.6/h", "--tokens", "40+2")
    for word in ("activations", "optimizer", "from - to", "3 of 3 trials", "lora", "its budget of 60 s",
                 "lora: lr from", "zero_shot: as it is"):  # fmt: skip
        assert word in text, text
    (zero_shot,) = (line for line in text.splitlines() if line.startswith("zero_shot:") and "budget" in line)
    assert "search" not in zero_shot, "there is nothing to choose"


def test_what_the_command_line_says_stands_in_place_of_the_file(study: Path) -> None:
    words = (
        "--methods",
        "bitfit,full",
        "--seeds",
        "5",
        "--scales",
        "50",
        "--budget",
        "90s",
        "--set",
        "training.epochs=1",
    )
    here = ("--machine", "t4", "--price", "3.6/h", "--tokens", "40+2", "--no-calibrate")
    trials = json.loads(plan(str(study), *words, *here, "--json"))["trials"]
    assert {(one["method"], one["rows"]) for one in trials} == {("bitfit", 50), ("full", 50)}
    assert {one["seed"] for one in trials} == set(range(5))
    assert "its budget of 90 s" in plan(str(study), *words, *here)
    file = study.read_text().replace("seeds: 2", "seeds: 5").replace("scales: [100]", "scales: [50]")
    file = file.replace("[zero_shot, lora: {rank: [2]}]", "[bitfit, full]") + "training: {epochs: 1}\n"
    study.write_text(file)
    assert json.loads(plan(str(study), *here, "--json"))["trials"] == trials


def test_baselines_have_no_budget_in_a_plan(study: Path) -> None:
    study.write_text(study.read_text() + "baselines: true\n")
    lines = plan(str(study), "--machine", "t4", "--price", "3.6/h", "--tokens", "40+2").splitlines()
    assert any("majority" in line for line in lines)
    assert not any(line.startswith(("majority:", "tfidf:")) for line in lines)


def test_steps_are_measured_once_and_kept(study: Path) -> None:
    first = json.loads(plan(str(study), "--tokens", "12+2", "--json"))
    assert first["speed"] == "measured here"
    kept = list((study.parent / "cache" / "calibration").glob("*.json"))
    assert len(kept) == 1
    changed = json.loads(kept[0].read_text())
    changed["speed"]["source"] = "measured before"
    kept[0].write_text(json.dumps(changed))
    assert json.loads(plan(str(study), "--tokens", "12+2", "--json"))["speed"] == "measured before"


def test_unknown_machines_and_lengths_are_refused(study: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'a100-80gb'"):
        plan(str(study), "--machine", "a100-80g")
    with pytest.raises(UserError, match="no number of tokens"):
        plan(str(study), "--machine", "t4", "--tokens", "long")
