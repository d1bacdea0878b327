"""Dry runs are kept from one plan to the next, and made again as soon as anything that decides them differs."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_trial_plan import backbone, planner

from dollartune.methods.registry import build_method
from dollartune.planner import trial_plan
from dollartune.planner.dry_run import DryRun
from dollartune.planner.dry_run_cache import cache_file
from dollartune.train.settings import TrainingSettings


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))


def test_a_second_plan_runs_nothing_dry_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = [build_method("lora")]
    first = planner().estimate(lora)

    def refused(*_: object) -> None:
        raise AssertionError("run dry again")

    for name in ("_training_step", "_tracer"):
        monkeypatch.setattr(DryRun, name, refused)
    assert planner().estimate(lora) == first
    with pytest.raises(AssertionError, match="run dry again"):
        planner().estimate([build_method("lora(rank=2)")])


def test_what_decides_a_dry_run_is_in_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lora, settings = [build_method("lora")], TrainingSettings()
    bare = backbone("opt")
    files = {
        cache_file(bare, lora, "lora", settings, "cpu"),
        cache_file(backbone("gpt2"), lora, "lora", settings, "cpu"),
        cache_file(bare, lora, "rank 2", settings, "cpu"),
        cache_file(bare, lora, "lora", TrainingSettings(batch_size=4), "cpu"),
        cache_file(bare, lora, "lora", settings, "cuda"),
    }
    monkeypatch.setattr("dollartune.planner.dry_run_cache._code", lambda: "another version")
    files.add(cache_file(bare, lora, "lora", settings, "cpu"))
    assert None not in files
    assert len(files) == 6


def test_what_is_not_ours_or_reads_files_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = [build_method("adapter_fusion(adapters=['runs/a', 'runs/b'])")]
    assert cache_file(backbone("opt"), fusion, "fusion", TrainingSettings(), "cpu") is None
    lora = build_method("lora")
    monkeypatch.setattr(type(lora), "__module__", "plugin")
    assert cache_file(backbone("opt"), [lora], "lora", TrainingSettings(), "cpu") is None


def test_a_spoilt_file_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = [build_method("lora")]
    first = planner().estimate(lora)
    used = trial_plan.cache_file(
        planner().backbone, lora, repr(trial_plan._structure(lora)), planner().training, planner().hardware.device
    )
    assert used is not None
    assert used.is_file()
    used.write_text("{")
    assert planner().estimate(lora) == first
