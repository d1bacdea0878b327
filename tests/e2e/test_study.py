"""A study through the command line, killed in the middle: the same command gives what an unbroken run gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
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


def start(study: Path, *more: str) -> subprocess.Popen[str]:
    # checkpoints every 0.2 s instead of every 10 s, so that a kill in a study of seconds meets some
    script = (
        "import signal, sys, time; import dollartune.train.checkpoints as c\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell hands it down as ignored
        "c.Checkpoints.__init__.__defaults__ = (0.2, time.monotonic, lambda: None)\n"
        "from dollartune.cli import main; main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "run", str(study), "--no-report", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(study: Path, *more: str) -> str:
    process = start(study, *more)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
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


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
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
        process = start(killed)
        wait_for(wait, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
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
    longer = {"epochs": 250, "batch_size": 4, "patience": None}
    study = study_in("stopped", methods=["zero_shot", "bitfit"], training=longer)
    root = study.parent / "results" / "trials"
    process = start(study)
    wait_for(lambda: any(root.glob("*/checkpoint/*.json")), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
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
