"""Features are computed once: for trials, evaluations and later runs; and a study with solved methods from end to end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from dollartune.attachment.attached import Attached
from dollartune.attachment.pooling import pooled_states
from dollartune.backbones.loading import load_backbone
from dollartune.budget.totals import read_totals
from dollartune.errors import UserError
from dollartune.evaluate.predict import predict_rows
from dollartune.export.opening import open_adapter
from dollartune.methods.linear_probe import LinearProbe
from dollartune.study.api import Study
from dollartune.study.results import Results
from dollartune.tasks.registry import load_task
from dollartune.train.encoding import Encoded, Encoder
from dollartune.train.features import FeatureStore
from dollartune.train.solve import solved_rows, training_seconds


@pytest.fixture(scope="module")
def encoder() -> Any:
    """tiny-encoder, what is attached to it, and encoded rows."""
    task = load_task("demo_library")
    backbone = load_backbone("tiny-encoder", "classification", task.labels)
    rows = Encoder(backbone, 48).encode(task, task.splits(12, 0).train)
    return backbone, Attached(backbone.model, backbone.anatomy, backbone.processor), rows


def test_rows_are_computed_once_and_read_by_the_next_run(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    store = FeatureStore("a", tmp_path)
    first = store.features(backbone, attached, rows[:8], ("mean",))
    assert store.computed == 8
    both = store.features(backbone, attached, [*rows, rows[0]], ("mean",))
    assert store.computed == 12
    assert torch.equal(both[:8], first)
    assert torch.equal(both[0], both[-1])
    later = FeatureStore("a", tmp_path)
    assert torch.equal(later.features(backbone, attached, rows, ("mean",)), both[:12])
    assert later.computed == 0
    assert not later.missing(backbone, rows, ("mean",))
    assert len(later.missing(backbone, rows, ("last",))) == 12


def test_features_are_what_a_plain_pass_gives(encoder: Any) -> None:
    backbone, attached, rows = encoder
    found = FeatureStore().features(backbone, attached, rows, ("mean", "first"), batch_size=4)
    for row, features in zip(rows, found, strict=True):
        ids = torch.tensor([row.prompt])
        plain = pooled_states(attached, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ("mean", "first"))
        torch.testing.assert_close(features, plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("seconds_per_row", "timed"), [(0.0, 12), (0.5, 4), (60.0, 2)])
def test_features_are_timed_on_as_many_rows_as_a_moment_pays_for(
    encoder: Any, seconds_per_row: float, timed: int
) -> None:
    """A backbone that takes a second for a row would spend a short budget on being measured."""
    backbone, attached, rows = encoder
    store = FeatureStore()
    adapter = attached.add("timed", [LinearProbe()], 0)
    try:
        seconds = training_seconds(adapter, backbone, attached, store, rows, seconds_per_row)
    finally:
        attached.remove("timed")
    assert store.computed == timed
    assert seconds > 0


def test_a_share_of_the_rows_has_each_class_and_grows_by_rows() -> None:
    """A class of one row is in every tenth row by luck alone, and the adapter could never answer it."""
    rows = [Encoded(f"train/{n}", (n,), label=0 if n % 2 else 2) for n in range(200)]
    rows[77], rows[141] = replace(rows[77], label=1), replace(rows[141], label=3)
    adapter: Any = SimpleNamespace(readout=SimpleNamespace(rows_share=0.1))
    chosen = solved_rows(adapter, rows)
    assert Counter(row.label for row in chosen) == {0: 9, 2: 9, 1: 1, 3: 1}
    assert [row.prompt for row in chosen] == sorted(row.prompt for row in chosen)
    adapter.readout.rows_share = 0.2
    assert set(chosen) <= set(solved_rows(adapter, rows)), "features of before are used"
    adapter.readout.rows_share = 0.001
    assert len(solved_rows(adapter, rows)) == 1


def test_other_weights_have_other_features(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    FeatureStore("a", tmp_path).features(backbone, attached, rows, ("mean",))
    other = FeatureStore("b", tmp_path)
    other.features(backbone, attached, rows, ("mean",))
    assert other.computed == 12


def test_a_damaged_file_counts_as_not_there(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    FeatureStore("a", tmp_path).features(backbone, attached, rows, ("mean",))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    again = FeatureStore("a", tmp_path)
    again.features(backbone, attached, rows, ("mean",))
    assert again.computed == 12


def test_what_is_paid_for_is_kept_when_the_money_ends(encoder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    backbone, attached, rows = encoder
    calls = []

    def until_third(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise TimeoutError
        return pooled_states(*args)

    monkeypatch.setattr("dollartune.train.features.pooled_states", until_third)
    monkeypatch.setattr("dollartune.train.micro_batch.spare_padding", lambda backbone: float("inf"))
    with pytest.raises(TimeoutError):
        FeatureStore("a", tmp_path).features(backbone, attached, rows, ("mean",), batch_size=3)
    assert len(FeatureStore("a", tmp_path).missing(backbone, rows, ("mean",))) == 6


def test_a_rows_key_is_all_that_the_backbone_sees() -> None:
    base = Encoded("a", (1, 2, 3), label=0)
    assert base.content == Encoded("b", (1, 2, 3), label=1).content
    assert base.content != Encoded("a", (1, 2, 4), label=0).content
    assert base.content != Encoded("a", (1, 2, 3), label=0, token_types=(0, 0, 1)).content
    assert Encoded("a", pixels=torch.zeros(3, 2, 2)).content != Encoded("a", pixels=torch.ones(3, 2, 2)).content


@pytest.mark.parametrize("backbone", ["tiny-encoder", "tiny-decoder"])
def test_a_study_of_solved_methods_from_end_to_end(backbone: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "name": "solved",
        "backbone": backbone,
        "task": "demo_library",
        "methods": ["linear_probe", "knn"],
        "scales": [96],
        "seeds": 1,
        "training": {"max_length": 64, "validation_rows": 16},
        "evaluation": {"rows": 48, "free_generation": False, "forgetting": False, "inference_cost": False},
        "keep_adapters": "all",
        "output": str(tmp_path),
    }
    results = Study(**settings).run()
    board = {row["method"]: row for row in results.leaderboard().to_dict("records")}
    assert set(board) == {"linear_probe", "knn"}
    chance = 1 / 8
    assert board["linear_probe"]["score"] > chance + 0.05
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("record.json"))]
    assert all(record["training"]["steps"] == 1 for record in records)
    entries = [json.loads(line) for line in (tmp_path / "solved" / "ledger.jsonl").read_text().splitlines()]
    assert any("tune" in json.dumps(entry) for entry in entries), "features and solution are booked as tuning"
    stored = list((tmp_path / ".features").rglob("*.safetensors"))
    assert stored, "the second method read what the first computed"
    for path in tmp_path.rglob("adapter/adapter.json"):
        tuned = open_adapter(path.parent)
        task = load_task("demo_library")
        rows = [dict(example.fields) for example in task.splits(96, 0, 48).test[:8]]
        predicted = [row.predicted for row in predict_rows(tuned, rows)]
        assert set(predicted) <= set(task.labels)


def test_a_solved_method_stands_alone(study_of: Any) -> None:
    with pytest.raises(UserError, match="cannot be combined with others"):
        Study(**study_of(methods=[["linear_probe", "lora"]])).run()


def test_who_reads_features_is_told_what_they_took_and_who_paid(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    store = FeatureStore("a", tmp_path)
    with store.noting(lambda: "first") as first:
        store.features(backbone, attached, [*rows[:8], rows[0]], ("mean",))
    assert len(first) == 8, "each row once"
    assert {row.booking for row in first} == {"first"}
    assert all(row.seconds > 0 for row in first)
    later = FeatureStore("a", tmp_path)
    with later.noting(lambda: "second") as second:
        later.features(backbone, attached, rows, ("mean",))
    by_booking = {name: [row.seconds for row in second if row.booking == name] for name in ("first", "second")}
    assert sum(by_booking["first"]) == pytest.approx(sum(row.seconds for row in first))
    assert len(by_booking["second"]) == len(rows) - 8
    later.features(backbone, attached, rows, ("mean",))
    assert len(second) == len(rows), "nothing is noted any more"


def test_features_whose_price_nobody_wrote_down_are_computed_again(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    FeatureStore("a", tmp_path).features(backbone, attached, rows, ("mean",))
    (file,) = tmp_path.rglob("*.safetensors")
    stored = load_file(file)
    file.write_bytes(save({name: stored[name] for name in ("keys", "features")}))
    again = FeatureStore("a", tmp_path)
    again.features(backbone, attached, rows, ("mean",))
    assert again.computed == len(rows)
    assert not FeatureStore("a", tmp_path).missing(backbone, rows, ("mean",))


def test_features_of_an_earlier_study_are_no_present(tmp_path: Path) -> None:
    """Who repeats the second study alone pays for them; what the study itself booked is another figure."""

    def run(name: str) -> tuple[Results, dict[str, Any]]:
        results = Study(
            name=name, backbone="tiny-encoder", task="demo_library", methods=["linear_probe", "knn"], scales=[96], seeds=1,
            training={"max_length": 64, "validation_rows": 16}, output=str(tmp_path), keep_adapters="all",
            evaluation={"rows": 48, "free_generation": False, "forgetting": False, "inference_cost": False},
        ).run()  # fmt: skip
        return results, {record.trial.group: record for record in results.done()}

    (_, first), (results, second) = run("first"), run("second")
    computed = first["linear_probe"].cost
    assert computed.features_seconds > 0
    # by its own bookings, save for what was measured before the trial began
    assert computed.features_booked_seconds > 0.5 * computed.features_seconds
    for record in (first["knn"], second["linear_probe"], second["knn"]):
        assert record.cost.features_seconds > 0
        assert record.cost.features_booked_seconds == 0
    rows = {row["method"]: row for row in results.leaderboard().to_dict("records")}
    for name, record in second.items():
        assert rows[name]["seconds"] == pytest.approx(record.cost.seconds + record.cost.features_seconds)
        stored = json.loads((results.store.folder(record.id) / "adapter" / "adapter.json").read_text())
        assert stored["cost"]["seconds"] > record.cost.features_seconds
    booked = results.store.ledger
    assert read_totals(booked).by_trial[second["knn"].id] == pytest.approx(second["knn"].cost.seconds), (
        "and no more is booked"
    )


def test_features_that_cannot_be_kept_are_given_all_the_same(encoder: Any, tmp_path: Path) -> None:
    backbone, attached, rows = encoder
    (tmp_path / "features").write_text("a file is in the way")
    found = FeatureStore("a", tmp_path / "features").features(backbone, attached, rows[:4], ("mean",))
    assert torch.equal(found, FeatureStore("a").features(backbone, attached, rows[:4], ("mean",)))
