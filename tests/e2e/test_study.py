"""A study through the command line, killed in the middle: the same command gives what an unbroken run gives."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command, checkpoints_often, interrupted_at_checkpoint
from safetensors.torch import load_file


@pytest.fixture
def study_in(study_of: Any, tmp_path: Path) -> Any:
    """Writes the study file for a run of its own; results lie in a folder beside it."""

    def write(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = folder / "study.yaml"
        whole = study_of(
            methods=["zero_shot", {"lora": {"rank": 2, "dropout": 0.1}}, "ia3", "bitfit", "full"],
            training={"epochs": 5, "batch_size": 4, "patience": None, "cohort_size": 2},
            keep_adapters="all", scales=[16], output=str(folder), name="results", baselines=False,
        )  # fmt: skip
        path.write_text(yaml.safe_dump({**whole, **changes}, sort_keys=False))
        return path

    return write


def start(study: Path, *more: str, before: Callable[[], None] = checkpoints_often) -> Command:
    return Command("run", str(study), "--no-report", *more, before=before)


def finish(study: Path, *more: str) -> str:
    code, out, error = start(study, *more).ended(600)
    assert code == 0, error
    return out


def trials(study: Path) -> dict[str, dict[str, Any]]:
    """Per trial what must not depend on interruptions: scores, predictions, training, tensors."""
    found = {}
    for path in sorted((study.parent / "results" / "trials").glob("*/record.json")):
        record = json.loads(path.read_text())
        training = record["training"]
        if training is not None:
            training = {key: value for key, value in training.items() if "seconds" not in key}
            training["history"] = [
                {key: value for key, value in row.items() if key != "seconds"} for row in training["history"]
            ]
        adapter = path.parent / "adapter" / "adapter.safetensors"
        found[record["id"]] = {
            "scores": record["test"]["scores"],
            "validation": record["validation"],
            "breakdown": record["test"]["breakdown"],
            "data": record["data"],
            "parameters": record["parameters"],
            "training": training,
            "predictions": (path.parent / "predictions.jsonl.gz").read_bytes(),
            "tensors": {n: t.tolist() for n, t in load_file(adapter).items()} if adapter.exists() else None,
        }
    return found


def wait_for(condition: Any, command: Command) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert command.running(), command.ended(0)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_in_the_middle_equals_unbroken(study_in: Any) -> None:
    whole = study_in("whole")
    finish(whole)
    expected = trials(whole)
    assert len(expected) == 5
    killed = study_in("killed")
    root = killed.parent / "results" / "trials"
    recorded: dict[str, int] = {}
    kills = 0
    for wait in (lambda: any(root.glob("*/checkpoint/*.json")), lambda: len(list(root.glob("*/record.json"))) >= 3):
        command = start(killed)
        wait_for(wait, command)
        command.kill()
        kills += 1
        for path in root.glob("*/record.json"):
            stamp = path.stat().st_mtime_ns
            assert recorded.setdefault(str(path), stamp) == stamp  # what has its record is never done again
    out = finish(killed)
    assert "have their record already" in out
    for path, stamp in recorded.items():
        assert Path(path).stat().st_mtime_ns == stamp
    assert kills == 2
    assert trials(killed) == expected
    assert not list(root.glob("*/*checkpoint*"))
    again = finish(killed)
    assert "5 of 5 trials have their record already" in again
    assert trials(killed) == expected


@pytest.mark.slow
def test_ctrl_c_ends_with_a_message_and_goes_on_and_fresh_begins_anew(study_in: Any) -> None:
    study = study_in("stopped", methods=["zero_shot", "bitfit"])
    root = study.parent / "results" / "trials"
    code, _, error = start(study, before=interrupted_at_checkpoint).ended(600)
    assert code == 130, error
    assert any(root.glob("*/checkpoint/*.json"))
    assert "the same command goes on from here" in error
    assert "Traceback" not in error
    out = finish(study)
    assert "1 of 2 trials have their record already" in out
    first = trials(study)
    assert len(first) == 2
    out = finish(study, "--fresh")
    assert "already" not in out
    assert "[2/2]" in out
    assert trials(study) == first  # the same seed on the same machine gives the same numbers
