"""A study under torchrun: two processes leave the records that one leaves."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Command, dollartune, two_by_torchrun

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.study.api import Study
from dollartune.study.torchrun import side_by_side
from dollartune.study_file import load_study
from dollartune.trials.store import Store


@pytest.mark.slow
def test_two_processes_leave_the_records_of_one(study_of: Any, tmp_path: Path) -> None:
    methods = ["zero_shot", {"lora": {"rank": 2, "lr": 0.05}}, {"prompt": {"tokens": 2}}]
    settings = study_of(methods=methods)
    alone = Study(settings).run(display=Display()).done()
    (tmp_path / "together.yaml").write_text(json.dumps({**settings, "name": "together"}))
    words = ("run", str(tmp_path / "together.yaml"), "--no-report")
    code, _, error = Command(*words, program=partial(two_by_torchrun, dollartune)).ended(550)
    assert code == 0, error[-3000:]
    folder = Path(settings["output"]) / "together"
    found = {r.trial.label: r for r in Store(folder).records() if not r.trial.baseline}
    assert found.keys() == {r.trial.label for r in alone}
    for record in alone:
        other = found[record.trial.label]
        assert other.test is not None
        assert other.test.scores == pytest.approx(record.test.scores, abs=1e-4)
        if record.training is None:  # prompting
            assert other.training is None
            continue
        assert other.training is not None
        assert other.training.steps == record.training.steps
        losses = [[row.validation_loss for row in r.training.history] for r in (other, record)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_limit_is_refused(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = load_study(study_of(budget={"seconds": 5}))
    with pytest.raises(UserError, match="has no limit of time or money"), side_by_side(settings, Path("none")):
        pass
