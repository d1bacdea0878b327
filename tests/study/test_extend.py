"""A finished trial is trained further: as a trial beside it, from its adapter on, paid by the study's budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.study.api import Study
from dollartune.study.live_file import ask_to_extend
from dollartune.untrusted_files import read_tensors


@pytest.fixture
def finished(study_of: Any) -> Study:
    study = Study(study_of(methods=["bitfit", "zero_shot"], keep_adapters="all", seeds=1))
    study.run(display=Display())
    return study


def records(study: Study) -> dict[str, Any]:
    return {record.trial.label: record for record in study.results().done()}


def test_it_goes_on_where_the_trial_ended(finished: Study) -> None:
    first = records(finished)["bitfit"]
    results = finished.extend(first.id[:6], steps=1, display=Display())
    assert {row["label"] for row in results.leaderboard().to_dict("records")} == {
        "bitfit",
        "bitfit, +1 steps",
        "zero_shot",
    }
    more = records(finished)["bitfit, +1 steps"]
    assert (more.trial.extends, more.trial.group, more.training.steps) == (first.id, "bitfit", 1)
    assert Path(more.training.begun_with) == finished.store.folder(first.id) / "adapter"
    before, after = (
        read_tensors(finished.store.folder(one.id) / "adapter", "adapter.safetensors") for one in (first, more)
    )
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())
    rate = finished.trials()[0].variant.build()[0].config.lr
    # one step of AdamW moves a number by its rate; begun anew it would have moved back by two
    assert 0 < moved <= 1.1 * rate
    assert finished.store.read(first.id) == first, "the first trial stays as it was"
    assert more.cost.seconds > 0


def test_what_was_extended_stays_and_can_be_extended_and_made_again(finished: Study) -> None:
    first = records(finished)["bitfit"]
    finished.extend(first.id, steps=1, display=Display())
    more = records(finished)["bitfit, +1 steps"]
    finished.run(display=Display())
    assert "bitfit, +1 steps" in records(finished), "the study goes on with it"
    finished.extend(more.id, epochs=1, display=Display())
    last = records(finished)["bitfit, +1 steps, +2 steps"]
    assert last.trial.extends == more.id
    assert finished.again(last.id).equal
    before = finished.store.read(last.id)
    finished.extend(more.id, epochs=1, display=Display())
    assert finished.store.read(last.id) == before, "what is recorded is not done again"


def test_it_runs_when_a_page_asked_for_it_while_the_study_ran(study_of: Any) -> None:
    study = Study(study_of(methods=["bitfit"]))
    trial = study.trials()[-1].identifier
    ask_to_extend(study.store.root, trial, 2)
    ask_to_extend(study.store.root, "f" * 12, None)
    said: list[str] = []

    class Notes(Display):
        def note(self, text: str) -> None:
            said.append(text)

    study.run(display=Notes())
    assert "bitfit, +2 steps" in records(study)
    assert any("there is no trial 'ffffffffffff'" in note for note in said)
    assert not list((study.store.root / "requests").iterdir())


def test_what_cannot_be_extended_says_why(finished: Study, study_of: Any) -> None:
    known = records(finished)
    with pytest.raises(UserError, match="was not trained in steps"):
        finished.extend(known["zero_shot"].id, display=Display())
    spent = Study(finished.settings, budget={"seconds": 0.001, "per": "method"})
    with pytest.raises(UserError, match="nothing is left of the budget"):
        spent.extend(known["bitfit"].id, display=Display())
    none = Study(study_of(methods=["bitfit"], name="none", keep_adapters="none"))
    none.run(display=Display())
    with pytest.raises(UserError, match="was not kept"):
        none.extend(records(none)["bitfit"].id, display=Display())
    assert torch.is_grad_enabled()
