"""Records: what 0.1 wrote still reads, what later versions add is kept, and the published schema is the program's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.trials.record import (
    RECORD_VERSION,
    Cost,
    DoneRecord,
    FailedRecord,
    TrialFacts,
    TrialRecord,
    ValidationResult,
    read_record,
    record_of,
    record_schema,
)

LEFT = Path(__file__).parent / "version_0_1"
"""Records that dollartune 0.1.0 wrote. Never write them anew with a later version."""


def left(name: str) -> tuple[dict[str, Any], TrialRecord]:
    """A record of 0.1: its JSON, and as it is read."""
    path = LEFT / f"{name}.json"
    return json.loads(path.read_text()), read_record(path.read_bytes(), str(path))


def test_a_tuned_trial_of_version_1_is_read() -> None:
    stored, record = left("done")
    assert stored["version"] == 1
    assert isinstance(record, DoneRecord)
    assert record.test.score == stored["score"]
    assert record.test.scores == stored["scores"]
    assert record.test.generation.breakdown == stored["generation"]["breakdown"]
    assert record.test.examples == stored["test"]["examples"] == 16
    assert record.budget is not None
    assert record.budget.model_dump(exclude_none=True) == {k: v for k, v in stored["promise"].items() if v is not None}
    assert record.training is not None
    assert record.training.frozen_prefix.model_dump() == stored["training"]["trunk"]
    assert [point.validation_loss for point in record.training.history] == [
        point["validation_loss"] for point in stored["training"]["history"]
    ]
    assert record.inference is not None
    assert record.inference.seconds == stored["inference"]["seconds"]
    assert record.cost.dollars == stored["cost"]["dollars"]
    assert record.trial.methods[0]["rank"] == 8


def test_a_trial_of_version_1_without_training_is_read() -> None:
    _, record = left("in_context")
    assert isinstance(record, DoneRecord)
    assert (record.training, record.adapter, record.stopped, record.parameters.trainable) == (None, None, None, 0)


def test_a_try_and_a_failure_of_version_1_are_read() -> None:
    stored, tried = left("tried")
    assert (tried.status, tried.test) == ("tried", None)
    assert tried.validation is not None
    assert tried.validation.standard_error == stored["validation"]["standard_error"] > 0
    stored, failed = left("failed")
    assert isinstance(failed, FailedRecord)
    assert (failed.error.kind, failed.error.message) == (stored["error"]["class"], stored["error"]["message"])
    assert not failed.cut_by_budget


@pytest.mark.parametrize("name", [path.stem for path in sorted(LEFT.glob("*.json"))])
def test_an_old_record_written_anew_says_the_same(name: str) -> None:
    _, record = left(name)
    again = record.to_json()
    assert again["version"] == RECORD_VERSION
    assert record_of(json.loads(json.dumps(again))) == record


def test_keys_of_later_programs_are_kept() -> None:
    stored = left("done")[1].to_json()
    stored["energy"] = {"joules": 3}
    stored["training"]["grams"] = 0.5
    again = record_of(stored).to_json()
    assert again["energy"] == {"joules": 3}
    assert again["training"]["grams"] == 0.5


def test_a_record_of_a_newer_version_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"here: a record of version 9; .* reads versions 1 to") as caught:
        record_of({"version": 9, "id": "a"}, "here")
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting"),
        ("[]", "expected a mapping, got list"),
        ('{"status": "done", "id": "a", "trial": {"group": "g", "label": "l", "task": "t", "seed": 0}}', "test: "),
        ('{"status": "begun", "id": "a", "trial": {"group": "g", "label": "l", "task": "t", "seed": 0}}', "status: "),
        ('{"status": "failed", "id": "a", "error": {"class": "x"}, "trial": {"group": "g"}}', "trial.label: "),
    ],
)
def test_what_is_no_record_is_named(text: str, told: str) -> None:
    with pytest.raises(UserError, match="here: not a trial's record") as caught:
        read_record(text, "here")
    assert told in caught.value.message


def test_what_is_no_number_is_stored_as_null() -> None:
    facts = TrialFacts(group="lora", label="lora", task="t", seed=0)
    validation = ValidationResult(score=math.nan, examples=3)
    record = TrialRecord(id="a", trial=facts, status="tried", validation=validation)
    text = json.dumps(record.to_json(), allow_nan=False)
    assert json.loads(text)["validation"] == {"score": None, "examples": 3}
    assert read_record(text, "a") == record


def test_a_record_does_not_change() -> None:
    record = left("done")[1]
    with pytest.raises(ValueError, match="frozen"):
        record.status = "failed"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("status", "stopped", "error", "cut"),
    [
        ("done", "budget", None, True),
        ("done", "finished", None, False),
        ("tried", "budget", None, False),
        ("failed", None, "budget", True),
        ("failed", None, "not_finite", False),
    ],
)
def test_what_the_budget_cut_goes_on_with_more(status: str, stopped: str | None, error: str | None, cut: bool) -> None:
    trial = {"group": "lora", "label": "lora", "task": "t", "seed": 0}
    stored: dict[str, Any] = {"version": 2, "id": "a", "trial": trial, "status": status, "test": {"score": 0.5}}
    stored["training"] = {"stopped": stopped} if stopped else None
    stored["error"] = {"class": error} if error else None
    assert record_of(stored).cut_by_budget is cut


def test_the_published_schema_is_the_programs() -> None:
    published = Path(__file__).parents[2] / "docs" / "record.schema.json"
    assert json.loads(published.read_text()) == record_schema(), "write it anew: dollartune docs --out docs"
    described = record_schema()["properties"]
    assert set(left("done")[1].to_json()) <= set(described)


def test_features_that_were_there_already_are_paid_for_once() -> None:
    """Of two trials of one setting, on the same features; the first computed a part of them."""
    first = Cost(seconds=10, dollars=10, price_per_hour=3600, features_seconds=8, features_booked_seconds=6)
    second = Cost(seconds=1, dollars=1, price_per_hour=3600, features_seconds=8)
    plain = Cost(seconds=3, dollars=3, price_per_hour=3600)
    assert (first.earlier_seconds, second.earlier_seconds, plain.earlier_seconds) == (2, 8, 0)
    alone, both, again = second.plus(), first.plus([second]), first.plus([second]).plus([plain])
    assert (alone.seconds, alone.dollars) == (9, 9)
    assert (both.seconds, both.dollars) == (13, 13)
    assert (again.seconds, again.dollars) == (16, 16)
    assert (plain.plus().seconds, plain.plus([plain]).seconds) == (3, 6)
    assert second.plus([Cost(seconds=1)]).known_dollars is None
