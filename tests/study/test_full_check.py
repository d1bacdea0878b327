"""What a run looks at before anything is paid, and that it looks once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.methods.bitfit import BitFit
from dollartune.study import full_check
from dollartune.study.api import Study
from dollartune.trials.expand import plan


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of noise, more than are decoded while they are read."""
    monkeypatch.setattr("dollartune.tasks.images.MOST_DECODED", 3)
    for number in range(24):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 24), 40 + number).save(path)
    return tmp_path / "pictures"


def test_a_picture_that_only_decoding_finds_damaged_ends_the_run_before_it_begins(
    pictures: Path, tmp_path: Path, study_of: Any
) -> None:
    damaged = pictures / "cat" / "0.bmp"
    damaged.write_bytes(damaged.read_bytes()[:-200])  # this format has no mark at its end
    study = Study(study_of(backbone="tiny-vit", task={"data": str(pictures)}, methods=["norm"]))
    study.trials()  # a quick look finds nothing
    with pytest.raises(UserError, match="not a readable image"):
        study.run(display=Display())
    assert not study.store.root.exists()


def test_good_pictures_are_decoded_once(pictures: Path, study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(study_of(backbone="tiny-vit", task={"data": str(pictures)}, methods=["norm"]))
    planned = plan(study.settings)
    assert full_check.full_check(study.settings, *planned[:2])[0] == planned[0]
    monkeypatch.setattr(full_check, "task_and_columns", None)
    assert full_check.full_check(study.settings, *planned[:2])[0] == planned[0]


def test_what_cannot_be_built_costs_its_own_trials(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def refuse(self: BitFit, *_: Any, **__: Any) -> None:
        built.append(self)
        raise UserError("no biases today.")

    monkeypatch.setattr(BitFit, "edit", refuse)
    settings = Study(study_of(methods=["bitfit", "norm"], seeds=2)).settings
    trials, tasks, _ = plan(settings)
    left, notes = full_check.full_check(settings, trials, tasks)
    assert [trial.label for trial in left] == ["norm", "norm"]
    assert notes == ["left out: bitfit: no biases today."]
    assert len(built) == 1, "once for all seeds"
    only = Study(study_of(methods=["bitfit"])).settings
    with pytest.raises(UserError, match="nothing is left to run"):
        full_check.full_check(only, *plan(only)[:2])


def test_what_was_built_is_not_built_again(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Study(study_of(methods=["bitfit", "norm"])).settings
    trials, tasks, _ = plan(settings)
    assert full_check.full_check(settings, trials, tasks) == (trials, [])
    monkeypatch.setattr(full_check, "bare_backbone", None)
    assert full_check.full_check(settings, trials, tasks) == (trials, [])
    more = Study(study_of(methods=["bitfit", "norm", "lora"])).settings
    with pytest.raises(TypeError):  # other methods are looked at
        full_check.full_check(more, *plan(more)[:2])
