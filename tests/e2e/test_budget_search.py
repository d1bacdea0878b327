"""A search through the command line, killed in the middle: the same settings, the same result, nothing booked twice."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command


def finish(*words: str) -> str:
    code, out, error = Command(*words).ended(900)
    assert code == 0, error
    return out


def write(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir()
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**settings, "output": str(folder), "name": "results"}, sort_keys=False))
    return path


def found(study: Path) -> dict[str, Any]:
    """What must not depend on an interruption."""
    root = study.parent / "results"
    (state,) = (json.loads(path.read_text()) for path in root.glob("searches/*.json"))
    records = [json.loads(path.read_text()) for path in root.glob("trials/*/record.json")]
    return {
        "tried": list(state["state"]["outcomes"]),
        "chosen": state["state"]["chosen"],
        "plan": json.loads((root / "plan.json").read_text()),
        "scores": {
            r["id"]: (r["status"], r["validation"]["score"], (r.get("test") or {}).get("scores")) for r in records
        },
    }


@pytest.mark.slow
def test_a_killed_search_ends_as_an_unbroken_one(study_of: Any, tmp_path: Path) -> None:
    settings = study_of(
        methods=["lora"],
        search=4,
        seeds=2,
        training={"epochs": 3, "batch_size": 4, "cohort_size": 2},
        keep_adapters="best",
        baselines=False,
    )
    whole = write(tmp_path / "whole", settings)
    finish("run", str(whole), "--no-report")
    broken = write(tmp_path / "broken", settings)
    command = Command("run", str(broken), "--no-report")
    try:
        end = time.monotonic() + 600
        while not list((tmp_path / "broken").glob("results/trials/*/record.json")) and time.monotonic() < end:
            assert command.running()
            time.sleep(0.02)
    finally:
        command.kill()
    out = finish("run", str(broken), "--no-report")
    assert "scored highest on the validation rows, of 4 settings tried" in out
    assert found(broken) == found(whole)
    lines = [json.loads(line) for line in (tmp_path / "broken" / "results" / "ledger.jsonl").read_text().splitlines()]
    pieces = [(line["session"], line["number"]) for line in lines if "number" in line]
    assert len({session for session, _ in pieces}) == 2
    assert len(pieces) == len(set(pieces))
    assert len(list((tmp_path / "broken").glob("results/trials/*/adapter"))) == 1


@pytest.mark.slow
def test_tune_hands_over_an_adapter_that_predicts(local_backbone: Any, reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    text = finish(
        "tune", str(local_backbone("llama")), str(reviews), "--method", "bitfit", "--budget", "20 min", "--rows", "16",
        "--seeds", "1", "--trials", "3", "--out", str(out), "--no-report",
    )  # fmt: skip
    assert f"dollartune predict {out / 'adapter'}" in text
    assert f"adapter: {out / 'adapter'} (bitfit" in text
    predicted = finish("predict", str(out / "adapter"), str(reviews), "--limit", "3")
    assert len(predicted.strip().splitlines()) == 3
    status = json.loads(finish("status", str(out / "study"), "--json"))
    assert status["spent_of_budget"][0]["share"] <= 1.02
    counted = [tuple(map(int, found)) for found in re.findall(r"^\[(\d+)/(\d+)\]", text, re.MULTILINE)]
    assert counted == [(number, 4) for number in range(1, 5)]  # three baselines and the best adapter
    assert status["done"] == 4
    assert status["tried"] >= 2  # beside a short first run, three settings in all, of which the best is done
