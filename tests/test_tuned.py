"""`tune` from Python: a frame in, an adapter that answers out; then more rows, beginning with it; then the rows it doubts."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from dollartune import Study, tune
from dollartune.config import StudySettings
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.doubts import doubts
from dollartune.evaluate.row_outcomes import RowOutcomes, row_outcomes
from dollartune.export.opening import open_adapter
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.tuned import OldAndNew, TunedAdapter, _told_apart, old_and_new, tuning_settings


@pytest.fixture(scope="module")
def rows(reviews: Path) -> list[dict[str, str]]:
    with reviews.open(encoding="utf8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], local_backbone: Any) -> TunedAdapter:
    """An adapter of some steps; made by a study of its own settings, as a budget would need a clock."""
    from dollartune.tuning import hand_over

    out = tmp_path_factory.mktemp("tuned")
    study = Study(
        backbone=str(local_backbone("llama")), task={"data": pandas.DataFrame(rows), "label": "mood"}, methods=["bitfit"],
        scales=["all"], seeds=1, training={"epochs": 1},
        evaluation={"rows": 12, "free_generation": False, "forgetting": False, "inference_cost": False},
        name="study", output=str(out),
    )  # fmt: skip
    results = study.run(display=Display())
    record = hand_over(study.store, out / "adapter")
    assert record is not None
    return TunedAdapter(out / "adapter", record, results)


def test_a_frame_is_a_task_of_a_study(tuned: TunedAdapter, rows: list[dict[str, str]]) -> None:
    settings = json.loads((tuned.results.store.root / "study.yaml").read_text())
    data = Path(settings["tasks"][0]["data"])
    assert [json.loads(line) for line in data.read_text().splitlines()] == rows


def test_predictions_come_as_a_frame(tuned: TunedAdapter, rows: list[dict[str, str]]) -> None:
    texts = [row["text"] for row in rows[:3]]
    found = tuned.predict(texts)
    assert set(found.columns) == {"predicted", "good", "bad"}
    assert found[["good", "bad"]].sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    frame = pandas.DataFrame({"text": texts}, index=[7, 8, 9])
    again = tuned.predict(frame)
    assert list(again.index) == [7, 8, 9]
    assert again["predicted"].tolist() == found["predicted"].tolist()
    assert tuned.predict({"text": texts})["predicted"].tolist() == found["predicted"].tolist()
    column = tuned.predict(frame["text"])
    assert list(column.index) == [7, 8, 9]
    assert column["predicted"].tolist() == found["predicted"].tolist()
    assert tuned.predict({"text": text} for text in texts)["predicted"].tolist() == found["predicted"].tolist()
    assert tuned.method in repr(tuned)


@pytest.mark.parametrize("given", ["what a fine day", {"text": "what a fine day"}, [7]])
def test_what_is_no_rows_is_told(tuned: TunedAdapter, given: Any) -> None:
    with pytest.raises(UserError, match="list"):
        tuned.predict(given)


def test_labels_are_ranked_by_doubt(tuned: TunedAdapter, rows: list[dict[str, str]]) -> None:
    shown: list[dict[str, Any]] = [
        *rows[:6],
        {**rows[6], "mood": ""},
        {**rows[7], "mood": None},
        {**rows[8], "mood": "odd"},
        {**rows[9], "mood": float("nan")},
        {**rows[10], "mood": " "},
        {**rows[11], "text": " "},
    ]
    found = doubts(open_adapter(tuned.folder), shown)
    assert [one.row for one in found.labelled] != []
    assert {one.row for one in found.labelled} == set(range(6))
    assert {one.row for one in found.unlabelled} == {6, 7, 9, 10}
    assert found.unknown == ("odd",)
    assert found.unread == (11,), "of a row without a text a model can say nothing"
    probabilities = tuned.predict([row["text"] for row in rows[:6]])
    for one in found.labelled:
        assert one.doubt == pytest.approx(1 - probabilities[rows[one.row]["mood"]][one.row], abs=1e-5)
    ordered = [one.doubt for one in found.labelled]
    assert ordered == sorted(ordered, reverse=True)


def test_beginning_with_an_adapter_keeps_its_method_prompt_and_backbone(
    tuned: TunedAdapter, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    more = tmp_path / "more.csv"
    pandas.DataFrame(rows * 2).to_csv(more, index=False)
    settings, _ = tuning_settings(str(more), None, "60 s", tmp_path / "new", {"label": "mood"}, begin_with=tuned.folder)
    assert list(settings["methods"][0]) == ["bitfit"]
    assert settings["begin_with"] == str(tuned.folder.resolve())
    assert settings["task"]["label_words"] == {"bad": "bad", "good": "good"}
    with pytest.raises(UserError, match="cannot go on with another backbone"):
        tuning_settings(str(more), "tiny-decoder", "60 s", tmp_path, {"label": "mood"}, begin_with=tuned.folder)
    with pytest.raises(UserError, match="keeps the method"):
        tuning_settings(str(more), None, "60 s", tmp_path, {}, methods=["lora"], begin_with=tuned.folder)


def test_beginning_with_an_adapter_asks_and_loads_as_it_was_tuned(
    tuned: TunedAdapter, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    pandas.DataFrame(rows).to_csv(tmp_path / "more.csv", index=False)

    def settings(task: dict[str, Any], **info: Any) -> StudySettings:
        """Of a study that begins with the adapter, of which these things are otherwise."""
        before = shutil.copytree(tuned.folder, tmp_path / "before", dirs_exist_ok=True) / "adapter.json"
        stored = json.loads(before.read_text())
        before.write_text(json.dumps({**stored, **info, "task": {**stored["task"], **task}}))
        chosen, _ = tuning_settings(
            str(tmp_path / "more.csv"), None, "60 s", tmp_path / "new", {"label": "mood"}, begin_with=before.parent
        )
        return load_study(chosen)

    plain = settings({})
    assert plain.tasks[0]["chat"] == "never"  # type: ignore[index]
    assert plain.backbones[0].model_dump(exclude_defaults=True).keys() == {"name"}
    chat = settings({"chat_template": "{{ messages[0].content }}", "system": "Be kind."})
    assert "chat" not in chat.tasks[0]
    assert chat.tasks[0]["system"] == "Be kind."  # type: ignore[index]
    text = "model_types: [llama]"
    (loaded,) = settings({}, quantize="nf4", anatomy=text, random_weights_seed=0, objective="classification").backbones
    assert (loaded.quantize, loaded.random_weights_seed, loaded.objective) == ("nf4", 0, "classification")
    assert Path(str(loaded.anatomy)).read_text() == text


def test_old_and_new_are_scored_on_the_same_unseen_rows(
    tuned: TunedAdapter, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    fresh = [{"text": f"{row['text']}, says a friend", "mood": row["mood"]} for row in rows]
    study = Study(
        task={"data": pandas.DataFrame(fresh), "label": "mood"}, backbone="tiny-decoder", methods=["bitfit"], name="new",
        output=str(tmp_path),
    )  # fmt: skip
    found = old_and_new(tuned.folder, tuned.folder, study)
    assert found is not None
    assert found.old == found.new
    assert found.rows > 0
    assert "unchanged" in found.sentence
    assert found.unseen
    # one from elsewhere does not say which rows it was tuned on, and nothing may be said of it
    nameless = tmp_path / "nameless"
    shutil.copytree(tuned.folder, nameless)
    info = json.loads((nameless / "adapter.json").read_text())
    del info["rows_seen"]
    (nameless / "adapter.json").write_text(json.dumps(info))
    other = old_and_new(nameless, tuned.folder, study)
    assert other is not None
    assert not other.unseen
    # rows that the old one was tuned on are no test of it
    seen = Study(
        task={"data": pandas.DataFrame(rows), "label": "mood"}, backbone="tiny-decoder", methods=["bitfit"], name="x"
    )
    same = old_and_new(tuned.folder, tuned.folder, seen)
    assert same is None or same.rows <= 12


def test_dollars_without_a_price_are_refused_before_anything_is_loaded(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs the price"):
        tune(rows, budget="$1", out=tmp_path)


def test_a_misspelt_key_has_its_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'scales'"):
        Study(backbone="tiny-decoder", task="demo_library", methods=["lora"], scals=[10])


@pytest.mark.slow
def test_tune_chooses_a_backbone_and_hands_over(rows: list[dict[str, str]], tmp_path: Path) -> None:
    notes: list[str] = []

    class Listening(Display):
        def note(self, text: str) -> None:
            notes.append(text)

    # one setting of each method: done long before the budget is
    found = tune(rows, label="mood", budget="40 s", trials=1, seeds=1, out=tmp_path / "out", display=Listening())
    assert found.folder.is_dir()
    assert isinstance(found.results, Results)
    assert any(note.startswith("backbone ") for note in notes)


@pytest.mark.parametrize(
    ("new", "told", "word"),
    [
        (0.9134, False, "unchanged"),
        (0.93, False, "higher, which luck with the rows can explain"),
        (0.99, True, "higher, more than luck with the rows explains"),
        (0.6, None, "lower; how sure that is cannot be said"),
    ],
)
def test_an_adapter_is_no_better_than_the_rows_say(new: float, told: bool | None, word: str) -> None:
    one = OldAndNew(100, "accuracy", 0.9132, new, (0.85, 0.95), (new - 0.05, new + 0.05), (), told, True)
    assert one.sentence.endswith(f"now ({word}).")
    assert "which neither was tuned on" in one.sentence
    assert "neither" not in replace(one, unseen=False).sentence, "an adapter that does not say which rows it saw"


@pytest.mark.parametrize(("better", "worse", "told"), [(12, 0, True), (7, 5, False), (0, 12, True), (3, 0, False)])
def test_two_adapters_are_told_apart_by_the_rows_that_differ(better: int, worse: int, told: bool) -> None:
    """Of 200 rows on which most answers are alike: intervals of the two scores overlap in each of these."""

    def rows(right: Callable[[int], bool]) -> RowOutcomes:
        stored = [{"predicted": "a" if right(n) else "b", "expected": "a", "correct": right(n)} for n in range(200)]
        return row_outcomes(stored, "accuracy")

    old = rows(lambda n: better <= n < 180)
    new = rows(lambda n: n < 180 - worse)
    assert _told_apart("accuracy", [old, new]) is told
    assert _told_apart("auc:a", [old, new]) is None
    assert _told_apart("accuracy", [rows(lambda n: True).first(1), rows(lambda n: False).first(1)]) is None
