"""What a trial would have to pay for alone: features of the frozen backbone, and what its frozen layers give."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors import safe_open

from dollartune.backbones.loading import load_backbone
from dollartune.budget.totals import read_totals
from dollartune.engines.trial_context import FEATURES
from dollartune.report.contents import collect
from dollartune.study.api import Study
from dollartune.tasks.registry import load_task
from dollartune.train.encoding import Encoder


def test_a_later_trial_gets_the_outputs_of_frozen_layers_for_no_present(tmp_path: Path) -> None:
    """Who runs the second method alone pays for its frozen layers too; methods that train the first layer read nothing."""
    last: dict[str, Any] = {"layers": "last 1"}
    results = Study(
        name="s", backbone="tiny-encoder", task="demo_library",
        methods=[{"bitfit": last}, {"lora": {**last, "rank": 2}}, "ia3"], scales=[32], seeds=1, output=str(tmp_path),
        training={"max_length": 64, "validation_rows": 16, "epochs": 1, "cohort_size": 1}, keep_adapters="all",
        evaluation={"rows": 24, "free_generation": False, "forgetting": False, "inference_cost": False},
    ).run()  # fmt: skip
    records = {record.trial.group: record for record in results.done()}
    first, second, whole = (records[name].cost for name in ("bitfit", "lora", "ia3"))
    assert first.features_seconds > 0
    assert first.features_booked_seconds == pytest.approx(first.features_seconds), "what it has computed it has paid"
    assert first.earlier_seconds == pytest.approx(0)
    assert second.features_seconds == pytest.approx(first.features_seconds), "the same rows, the same layers"
    assert second.features_booked_seconds == 0
    assert whole.features_seconds == 0
    rows = {row["method"]: row for row in results.leaderboard().to_dict("records")}
    for name, record in records.items():
        assert rows[name]["seconds"] == pytest.approx(record.cost.seconds + record.cost.earlier_seconds)
    booked = read_totals(results.store.ledger).by_trial
    assert booked[records["lora"].id] == pytest.approx(second.seconds), "and no more is booked"


def test_seeds_with_rows_of_their_own_cost_what_their_rows_took(tmp_path: Path) -> None:
    """Every figure from the journal's lines and the stored features alone: of the record, the leaderboard, the adapter and the
    report. Validation and test rows, which the seeds share, are in what each of their adapters would cost alone."""
    rows, price = 24, 3.6
    study = Study(
        name="s", backbone="tiny-encoder", task="demo_library", methods=["linear_probe"], scales=[32], seeds=2,
        budget={"seconds": 600, "per": "study", "price": price}, search=False, output=str(tmp_path), keep_adapters="all",
        training={"max_length": 64},
        evaluation={"rows": rows, "free_generation": False, "forgetting": False, "inference_cost": False},
    )  # fmt: skip
    results = study.run()
    pieces = [json.loads(line) for line in results.store.ledger.read_text().splitlines()]
    took, paid_by = {}, {}
    for path in (tmp_path / FEATURES).rglob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for key, seconds in zip(file.get_tensor("keys"), file.get_tensor("seconds"), strict=True):
                took[key.tobytes()], paid_by[key.tobytes()] = float(seconds), file.metadata()["booking"]
    task, encoder = load_task("demo_library"), Encoder(load_backbone("tiny-encoder", "classification"), 64)
    records = {record.trial.seed: record for record in results.done()}
    drawn, whole = {}, {}
    for seed, record in records.items():
        own = [piece for piece in pieces if piece["trial"] == record.id]
        booked = sum(piece["seconds"] for piece in own)
        assert record.cost.seconds == pytest.approx(booked)
        assert record.cost.dollars == pytest.approx(booked * price / 3600)
        splits = task.splits(32, 0, rows, draw=seed or None)
        drawn[seed] = {row.id for row in splits.train}
        read = {
            row.content for part in (splits.train, splits.validation, splits.test) for row in encoder.encode(task, part)
        }
        assert read <= took.keys()
        mine = {piece["booking"] for piece in own}
        features = sum(took[key] for key in read)
        of_these = sum(took[key] for key in read if paid_by[key] in mine)
        assert record.cost.features_seconds == pytest.approx(features, rel=1e-4)
        assert record.cost.features_booked_seconds == pytest.approx(of_these, rel=1e-4)
        whole[seed] = booked + features - of_these
        adapter = json.loads((results.store.folder(record.id) / "adapter" / "adapter.json").read_text())
        writing = sum(piece["seconds"] for piece in own if piece["category"] == "export")
        assert 0 <= whole[seed] - adapter["cost"]["seconds"] <= writing + 1e-9, (
            "its own file is written after it says so"
        )
    assert len(drawn[0] & drawn[1]) < len(drawn[0]), "each has rows of its own"
    assert records[1].cost.earlier_seconds > 0, "and both are scored on the same ones"
    (row,) = results.leaderboard().to_dict("records")
    entry = collect(results).boards[0].entry("linear_probe")
    assert entry is not None
    for seconds, dollars in ((row["seconds"], row["dollars"]), (entry.seconds, entry.dollars)):
        assert seconds == pytest.approx(fmean(whole.values()), rel=1e-4)
        assert dollars == pytest.approx(fmean(whole.values()) * price / 3600, rel=1e-4)
    by_method: dict[str, float] = defaultdict(float)
    for piece in pieces:
        by_method[piece["method"]] += piece["seconds"]
    assert read_totals(results.store.ledger).by_method["linear_probe"] == pytest.approx(by_method["linear_probe"])
