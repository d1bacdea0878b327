"""The sources as studies, and what `--shrink` makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dollartune.config import StudySettings
from dollartune.evidence import tables
from dollartune.study.downscale import EMBEDDED, MOST_ROWS, shrink
from dollartune.study_file import load_study
from dollartune.trials.trial import ablated, variants

SOURCES = sorted((Path(__file__).parents[2] / "examples" / "sources").glob("*.yaml"))


def rows_of(settings: StudySettings) -> int:
    """Table cells: methods with their ablations, times scales, tasks and backbones."""
    whole = variants(settings.methods)
    cells = len(whole) + len(ablated(whole, settings.ablations))
    return cells * len(settings.scales) * len(settings.tasks)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_shrunk_source_has_a_counterpart_of_every_setting(path: Path) -> None:
    original = load_study(path)
    small = shrink(original)
    assert rows_of(small) == rows_of(original)
    assert {backbone.name for backbone in small.backbones} <= set(EMBEDDED.values())
    assert max(rows or 0 for rows in small.scales) <= MOST_ROWS
    assert StudySettings.model_validate(small.model_dump()) == small, "what --shrink writes is a valid study"
    assert shrink(small) == small
    assert original.source is not None
    assert set(original.source.tables) <= set(tables())


def test_every_published_row_has_a_trial() -> None:
    """Cells of the sources' tables: 15 of 000 beside all-yes, 60 + 24 + 28 of 001, 4 + 2 + 12 + 12 of 002, 10 of 003."""
    cells = {path.stem: rows_of(load_study(path)) * len(load_study(path).backbones) for path in SOURCES}
    assert cells["000_opt_125m"] + cells["000_opt_350m"] == 12 + 3
    assert cells["001_table1"] == 5 * 4 * 3
    assert cells["001_ablations_ia3"] == 6 * 4
    assert cells["001_ablations_lora"] == 7 * 4
    assert cells["002_best"] + cells["002_best_70b"] == 6
    assert cells["002_prompt"] == cells["002_lora"] == 12
    assert sum(count for name, count in cells.items() if name.startswith("003")) == 2 + 1 + 6 + 1


def test_virtual_tokens_and_learning_rates_are_a_small_models() -> None:
    small = shrink(load_study(SOURCES[0]))
    prompts = [v.build()[0].config for v in variants(small.methods) if v.group == "prompt"]
    assert [config.tokens for config in prompts] == [1, 12, 24, 48]
    assert {config.lr for config in prompts} == {0.3}
