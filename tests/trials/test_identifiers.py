"""Trials have the identifiers that they had in 0.1, so that what was recorded then is not paid for again."""

import json
from pathlib import Path
from typing import Any

import pytest

from dollartune.study_file import load_study
from dollartune.trials.expand import plan

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITTEN = json.loads((Path(__file__).parent / "identifiers_of_0_1.json").read_text())
"""Made by 0.1 itself, with `plan(load_study(...), read_rows=False)`: settings are written there in every way they may be."""


@pytest.mark.parametrize("name", WRITTEN["studies"])
def test_a_study_lists_the_trials_of_before(name: str) -> None:
    stored = WRITTEN["studies"][name]
    # what naming no epochs meant in 0.1 has a name now; without it a trial is trained by another rule, so it is another one
    training = {"epochs": "reference_001", **stored["study"].get("training", {})}
    # and so do seeds that share one draw of the training rows
    settings = load_study({"draws": "once", **stored["study"], "training": training})
    assert [trial.identifier for trial in plan(settings, read_rows=False)[0]] == stored["identifiers"]
    again: dict[str, Any] = json.loads(settings.model_dump_json())  # as a study writes it down beside its records
    assert [trial.identifier for trial in plan(load_study(again), read_rows=False)[0]] == stored["identifiers"]


@pytest.mark.parametrize("name", WRITTEN["examples"])
def test_an_example_lists_the_trials_of_before(name: str) -> None:
    kept = Path(__file__).parent / name.replace(".yaml", "_of_0_1.yaml")  # of an example that is another study since
    study = kept if kept.is_file() else EXAMPLES / name
    settings = load_study(study, draws="once")
    if settings.data_root is not None and not Path(settings.data_root).is_dir():
        pytest.skip(f"the example's data set is not here: {settings.data_root}")  # its contents are part of a trial
    trials = plan(settings, read_rows=False)[0]
    assert [trial.identifier for trial in trials] == WRITTEN["examples"][name]
