"""A study that repeats a published one says what was published beside what was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dollartune.report.published import published_table
from dollartune.study.downscale import shrink
from dollartune.study_file import load_study
from dollartune.trials.record import TrialFacts

SOURCES = Path(__file__).parents[2] / "examples" / "sources"


def contents(cut: bool, source: bool = True) -> Any:
    """As much of a study's contents as the table reads: one entry of 000_opt_125m."""
    settings = load_study(SOURCES / "000_opt_125m.yaml")
    settings = shrink(settings) if cut else settings
    label = "lora(lr=0.003, rank=2, alpha=4.0)" if cut else "lora(rank=2, alpha=4.0)"
    backbone = settings.backbones[0].name
    scale = settings.scales[0]
    trial = TrialFacts(label=label, group="lora", backbone=backbone, task="boolq", scale=scale, seed=0)
    entry = SimpleNamespace(label=label, score=0.5, low=0.4, high=0.6, records=[SimpleNamespace(trial=trial)])
    board = SimpleNamespace(task="boolq", scale=scale, metric="accuracy", entries=[entry])
    return SimpleNamespace(
        settings=settings if source else settings.model_copy(update={"source": None}), boards=[board]
    )


def test_published_stands_beside_measured_and_is_marked_as_another_models() -> None:
    table = published_table(contents(cut=True))
    assert table is not None
    (row,) = table.rows
    assert row[3:6] == ("0.500", "0.400 to 0.600", "0.523")
    assert row[6] == "facebook/opt-125m, another model"
    assert "do not compare" in table.notes[0]


def test_the_same_model_is_not_marked() -> None:
    table = published_table(contents(cut=False))
    assert table is not None
    assert table.rows[0][6] == "facebook/opt-125m"
    assert not table.notes


def test_a_study_of_ones_own_has_no_such_table() -> None:
    assert published_table(contents(cut=False, source=False)) is None
