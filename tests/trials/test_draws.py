"""Each seed draws its own training rows, and what was recorded before seeds did so is found again."""

from __future__ import annotations

import json
from pathlib import Path

from dollartune.study_file import load_study
from dollartune.trials.expand import plan
from dollartune.trials.store import Store

STUDY = {"backbone": "tiny-decoder", "task": "demo_library", "methods": ["lora"], "seeds": 3, "scales": [16, "all"]}


def names(**settings: object) -> dict[tuple[int | None, int], str]:
    trials = plan(load_study({**STUDY, **settings}), read_rows=False)[0]
    return {(t.scale, t.seed): t.identifier for t in trials if not t.baseline}


def test_a_draw_is_part_of_the_trial_where_it_is_another_than_before() -> None:
    each, once = names(), names(draws="once")
    same = {key for key in each if each[key] == once[key]}
    assert same == {(16, 0), (None, 0), (None, 1), (None, 2)}
    assert load_study(STUDY).draws == "each_seed"


def test_a_folder_of_before_keeps_one_draw(tmp_path: Path) -> None:
    settings, store = load_study(STUDY), Store(tmp_path / "study")
    assert store.as_begun(settings).draws == "each_seed"
    written = json.loads(settings.model_dump_json())
    store.create(json.dumps(written), [])
    assert store.as_begun(settings).draws == "each_seed"
    del written["draws"]
    store.create(json.dumps(written), [])
    assert store.as_begun(settings).draws == "once"
    assert store.as_begun(load_study({**STUDY, "draws": "each_seed"})).draws == "each_seed"


def test_a_folder_of_before_searches_nothing(tmp_path: Path) -> None:
    limited, store = {**STUDY, "budget": "20 min"}, Store(tmp_path / "study")
    begun = json.loads(load_study(limited).model_dump_json())
    store.create(json.dumps(begun), [])
    assert store.as_begun(load_study(limited)).search is not None
    for written in (None, False):  # what 0.2 and 0.1 wrote where nothing was searched
        store.create(json.dumps({**begun, "search": written}), [])
        assert store.as_begun(load_study(limited)).search is None
        assert store.as_begun(load_study({**limited, "search": 4})).search is not None
    store.create(json.dumps({**begun, "search": None, "budget": None}), [])
    assert store.as_begun(load_study(limited)).search is not None, "the budget is new"


def test_baselines_have_the_draw_of_their_seed() -> None:
    trials = plan(
        load_study({**STUDY, "task": "demo_match", "baselines": True, "seeds": [4, 5], "scales": [16]}), read_rows=False
    )[0]
    assert {t.draw for t in trials if t.baseline} == {4}
