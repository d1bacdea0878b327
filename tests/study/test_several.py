"""Two studies beside each other, merged into one, and trials taken out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.journal import Journal, Piece, read_lines
from dollartune.budget.totals import read_totals
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.study.api import Study, open_study
from dollartune.study.several import compare_studies, merge_studies, remove_trials
from dollartune.trials.store import Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_backbone: Any, reviews: Path) -> tuple[Path, Path]:
    """Two studies of a second each: one with bitfit, one with bitfit and norm."""
    root = tmp_path_factory.mktemp("several")
    made = []
    for name, methods in (("one", ["bitfit"]), ("two", ["bitfit", "norm"])):
        study = Study(
            {
                "name": name, "backbone": str(local_backbone("llama")), "methods": methods, "scales": [16], "seeds": 1,
                "task": {"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood"}, "output": str(root),
                "training": {"epochs": 1, "batch_size": 8},
                "evaluation": {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False},
            }
        )  # fmt: skip
        study.run(display=Display())
        made.append(study.store.root)
    return made[0], made[1]


def test_what_both_have_is_compared(finished: tuple[Path, Path]) -> None:
    first, second = (open_study(path) for path in finished)
    (board,) = compare_studies(first, second)
    rows = {row["label"]: row for row in board.rows}
    assert rows["bitfit"]["difference"] == 0, "the same trial in both"
    assert rows["norm"]["one"] is None
    assert board.comparison is not None
    assert {"bitfit (one)", "bitfit (two)", "norm (two)"} == {one.method for one in board.comparison.standings}


def test_studies_on_other_rows_claim_no_difference(finished: tuple[Path, Path], study_of: Any) -> None:
    other = Study(
        study_of(
            name="other",
            methods=["bitfit"],
            evaluation={"rows": 6, "free_generation": False, "forgetting": False, "inference_cost": False},
        )
    )
    other.run(display=Display())
    (board,) = compare_studies(open_study(finished[0]), other.results())
    assert board.comparison is None
    assert "different rows" in str(board.note)
    assert {row["difference"] for row in board.rows} == {None}, "and none is printed"


def test_studies_of_one_name_in_folders_of_one_name_are_told_apart(finished: tuple[Path, Path], tmp_path: Path) -> None:
    for number, path in enumerate(finished):
        shutil.copytree(path, tmp_path / str(number) / "studies" / "study")
    first, second = (open_study(tmp_path / str(number) / "studies" / "study") for number in range(2))
    (board,) = compare_studies(first, second)
    rows = {row["label"]: row for row in board.rows}
    assert rows["norm"]["0/studies/study"] is None
    assert rows["norm"]["1/studies/study"] is not None
    with pytest.raises(UserError, match="the same study"):
        compare_studies(first, first)


def test_scores_of_different_metrics_are_no_difference(finished: tuple[Path, Path], study_of: Any) -> None:
    task = {**study_of()["task"], "metric": "macro_f1"}
    other = Study(
        study_of(
            name="f1",
            methods=["bitfit"],
            task=task,
            evaluation={"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False},
        )
    )
    other.run(display=Display())
    (board,) = compare_studies(open_study(finished[0]), other.results())
    assert board.comparison is None
    assert "measured accuracy and f1 macro_f1" in str(board.note)
    assert {row["difference"] for row in board.rows} == {None}


def test_merged_they_are_one_study(finished: tuple[Path, Path], tmp_path: Path) -> None:
    stores = [Store(Path(shutil.copytree(path, tmp_path / path.name))) for path in finished]
    (stores[1].root / "trials" / ".DS_Store").write_bytes(b"what a Mac leaves in folders")
    merged = merge_studies(stores, tmp_path / "both")
    labels = {record.trial.label for record in open_study(tmp_path / "both").done()}
    assert labels == {"bitfit", "norm"}
    assert read_totals(merged.ledger).seconds == pytest.approx(sum(read_totals(s.ledger).seconds for s in stores))
    assert all(store.planned() for store in stores)
    # what is in both was paid once
    twice = merge_studies([stores[0], merged], tmp_path / "twice")
    assert read_totals(twice.ledger).seconds == pytest.approx(read_totals(merged.ledger).seconds)
    with pytest.raises(UserError, match="is there already"):
        merge_studies(stores, tmp_path / "both")
    # what it plans is what it has: nothing is run again
    from dollartune.study.status import settings_of

    settings = settings_of(merged)
    assert settings is not None
    found = Study(settings.model_copy(update={"output": str(tmp_path)}))
    assert all(found.store.has(trial.identifier) for trial in found.trials())


def test_studies_of_other_tasks_are_not_merged(finished: tuple[Path, Path], study_of: Any, tmp_path: Path) -> None:
    task = {**study_of()["task"], "prompt": "Mood of {text}:"}
    other = Study(study_of(name="words", methods=["bitfit"], task=task))
    other.run(display=Display())
    with pytest.raises(UserError, match="another task or backbone"):
        merge_studies([Store(finished[0]), other.store], tmp_path / "both")


def test_a_trial_is_removed_by_the_beginning_of_its_name(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[1], tmp_path / "copy")
    store = Store(tmp_path / "copy")
    first, second = (record.id for record in store.records())
    assert remove_trials(store, [first[:6]]) == [first]
    assert [record.id for record in store.records()] == [second]
    # an empty variable of a script names nothing, also where there is one trial only
    with pytest.raises(UserError, match="no trial begins with ''"):
        remove_trials(store, [""])
    with pytest.raises(UserError, match="no trial begins"):
        remove_trials(store, [first])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_seed": 1}, "data_seed 0 and 1"),
        ({"training": {"epochs": 1, "batch_size": 4}}, "training.batch_size 8 and 4"),
        (
            {"evaluation": {"rows": 6, "free_generation": False, "forgetting": False, "inference_cost": False}},
            "evaluation.rows 8 and 6",
        ),
        ({"draws": "once"}, "draws each_seed and once"),
    ],
)
def test_studies_of_other_settings_are_not_merged(
    finished: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    from dollartune.study.status import settings_of

    first = Store(finished[0])
    settings = settings_of(first)
    assert settings is not None
    other = Store(tmp_path / "other")
    other.create(Study(settings, **changes).settings.model_dump_json(exclude={"output", "engine"}), [])
    with pytest.raises(UserError, match=named):
        merge_studies([first, other], tmp_path / "both")
    # what decides no score may differ
    quick = {"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False, "batch_size": 4}
    other.create(Study(settings, evaluation=quick).settings.model_dump_json(), [])
    merge_studies([first, other], tmp_path / "both")


def test_what_a_killed_study_was_at_is_in_the_sum_of_a_merge(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[1], tmp_path / "killed")
    stores = [Store(finished[0]), Store(tmp_path / "killed")]
    last = read_lines(stores[1].ledger)[-1]
    assert isinstance(last, Piece)
    running = Journal(stores[1].ledger)
    running.beat([last, replace(last, number=last.number + 1, seconds=100.0)])
    running._file.close()  # kill -9: the first of the two had just been written to the journal
    whole = sum(read_totals(store.ledger).seconds for store in stores)
    merged = merge_studies(stores, tmp_path / "both")
    assert read_totals(merged.ledger).seconds == pytest.approx(whole)
    Journal(stores[1].ledger).close()  # it goes on, and writes down what it was at
    twice = merge_studies([merged, stores[1]], tmp_path / "twice")
    assert read_totals(twice.ledger).seconds == pytest.approx(whole)


def test_a_merge_that_is_killed_leaves_no_half_of_a_study(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_studies([Store(path) for path in finished], tmp_path / "both")
    assert not (tmp_path / "both").exists()
