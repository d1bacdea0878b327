"""Tasks from the user's own data: guesses said aloud, leaks removed, every mistake answered with the nearest name."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.tasks import Task, custom, load_task
from dollartune.tasks import labels as labels_module
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.files import read_file
from dollartune.tasks.labels import LabelReader, different_values, match_label
from dollartune.tasks.suggest import suggest_task


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def reviews(count: int = 40) -> list[dict[str, Any]]:
    return [{"stars": n, "review": f"review number {n}", "sentiment": "pos" if n % 2 else "neg"} for n in range(count)]


def inputs(task: Task) -> dict[str, set[str]]:
    return {split: {task.prompt(example) for example in rows} for split, rows in task.load().items()}


def test_one_file_is_enough(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "reviews.csv", reviews())
    task = load_task(str(path))
    assert task.name == "reviews"
    assert (task.kind, task.labels, task.metric) == ("classification", ("neg", "pos"), "accuracy")
    notes = "\n".join(task.notes)
    assert "column 'sentiment' is taken as the class label (guessed" in notes
    assert "column 'review' is taken as the input (guessed" in notes
    assert "not shown to the model: 'stars'" in notes
    assert "28 train, 6 validation, 6 test rows" in notes
    first = task.load()["test"][0]
    assert first.id == "test/0"
    assert task.prompt(first) == f"{first.fields['review']}\n\nSentiment:"
    assert task.answer(first) == first.label


def test_the_inline_mapping_of_a_study_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", reviews())
    write_csv(tmp_path / "other.csv", [{"review": "new", "sentiment": "pos"}, {"review": "newer", "sentiment": "NEG "}])
    text = """
        data: reviews.csv
        text: review
        label: sentiment
        prompt: "Review: {review}\\nSentiment:"
        label_words: {pos: good, neg: bad}
        test: other.csv
        metric: matthews
    """
    task = load_task(yaml.safe_load(text), data_root=tmp_path)
    assert task.labels == ("pos", "neg")
    assert not any("guessed" in note for note in task.notes)
    test = task.load()["test"]
    assert [task.answer(example) for example in test] == ["good", "bad"]
    assert task.prompt(test[0]) == "Review: new\nSentiment:"
    assert len(task.load()["train"]) + len(task.load()["validation"]) == 40


def test_yaml_truth_values_are_labels_too(tmp_path: Path) -> None:
    """Unquoted yes and no are booleans in YAML; the csv says True and False."""
    write_csv(tmp_path / "a.csv", [{"text": f"t{n}", "label": str(n % 2 == 0)} for n in range(20)])
    task = load_task(yaml.safe_load("{data: a.csv, label: label, label_words: {yes: yes, no: no}}"), data_root=tmp_path)
    assert set(task.labels) == {"yes", "no"}
    assert {example.label for example in task.load()["train"]} == {"yes", "no"}


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_suggestion_loads_to_the_same_task(tmp_path: Path, kind: str) -> None:
    """What `dollartune init` writes down, through YAML and back."""
    rows = reviews() if kind == "classification" else [{"article": f"a {n}", "summary": f"s {n}"} for n in range(20)]
    path = write_csv(tmp_path / "data.csv", rows)
    entry, task = suggest_task(str(path))
    assert task.kind == kind
    again = load_task(yaml.safe_load(yaml.safe_dump(entry)))
    assert not any("guessed" in note for note in again.notes)
    assert (again.labels, again.metric, again.template.text) == (task.labels, task.metric, task.template.text)
    assert again.load() == task.load()


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command asks for its task early, spells it out and plans it: large files would be read three times of one budget."""
    read: list[Path] = []

    def counted(path: Path, *more: Any) -> Any:
        read.append(path)
        return read_file(path, *more)

    monkeypatch.setattr(custom, "read_file", counted)
    path = write_csv(tmp_path / "data.csv", reviews())
    suggest_task(str(path))
    entry, task = suggest_task(str(path))
    planned = load_task({**entry, "metric": "macro_f1"})
    assert (len(read), planned.metric, planned.load()) == (1, "macro_f1", task.load())
    write_csv(path, [*reviews(), {**reviews()[0], "review": "one more"}])
    (rows, more) = (sum(map(len, one.load().values())) for one in (planned, load_task(entry)))
    assert (len(read), more) == (2, rows + 1)
    # another prompt or other words are another reading
    load_task({**entry, "label_words": {label: label.upper() for label in task.labels}})
    assert len(read) == 3


def test_of_large_files_the_latest_alone_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told and what is spelled out are one; sets that a notebook was at before are gigabytes."""
    monkeypatch.setattr(custom, "MOST_KEPT_BYTES", 1)
    paths = [write_csv(tmp_path / f"{name}.csv", reviews()) for name in "ab"]
    for path in paths:
        suggest_task(str(path))
    assert len(custom._kept) == 2
    assert len({id(made.examples) for _, made in custom._kept.values()}) == 1
    load_task({"data": str(path), "label": "sentiment", "text": "review"})
    assert len(custom._kept) == 1


def test_rows_that_a_caller_changes_are_no_other_tasks(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", reviews())
    rows: Any = load_task(str(path)).load()
    before = len(rows["train"])
    del rows["train"][3:]
    assert len(load_task(str(path)).load()["train"]) == before


def test_each_different_label_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(value: Any, labels: Any) -> Any:
        asked.append(value)
        return match_label(value, labels)

    monkeypatch.setattr(labels_module, "match_label", counted)
    read = LabelReader(["yes", "no"])
    answers = [read(value) for value in ["Yes", True, 1, "Yes", True, "maybe", ["no"], ["no"], ["a", "b"]]]
    assert [label for label, _ in answers] == ["yes", "yes", "yes", "yes", "yes", None, "no", "no", None]
    assert asked == ["Yes", True, 1, "maybe", ["no"], ["no"]]
    assert [problem is None for _, problem in answers] == [True] * 8 + [False]
    assert different_values(["a", 1, True, "a", 1.0, None, None]) == [
        ("a", 2), (1, 1), (True, 1), (1.0, 1), (None, 1), (None, 1),
    ]  # fmt: skip


def test_number_labels_are_ordered_by_value(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 11} for n in range(110)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_task(str(tmp_path / "a.jsonl")).labels == tuple(str(n) for n in range(11))


def test_generation_with_references(tmp_path: Path) -> None:
    rows = [{"document": f"d{n}", "summary": f"s{n}", "all": [f"s{n}", f"z{n}"]} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task({"data": str(tmp_path / "a.jsonl"), "references": "all"})
    assert (task.kind, task.metric) == ("generation", "rougeL")
    assert any("'summary' is taken as the text to write" in note for note in task.notes)
    example = task.load()["train"][0]
    assert example.references == (example.target, str(example.target).replace("s", "z"))
    assert "summary" not in example.fields
    assert "all" not in example.fields


def test_other_scripts_are_not_measured_by_rouge(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "target": f"Москва {n} столица"} for n in range(20)]
    task = load_task(str(write_csv(tmp_path / "a.csv", rows)))
    assert task.metric == "chrf"
    assert any("not in the Latin alphabet" in note for note in task.notes)


def test_duplicates_never_cross_a_split(tmp_path: Path) -> None:
    rows = [{"text": f"Text {n % 30}".upper() if n % 2 else f"text  {n % 30}", "label": n % 3} for n in range(120)]
    task = load_task(str(write_csv(tmp_path / "a.csv", rows)))
    found = {split: {" ".join(e.fields["text"].lower().split()) for e in rows} for split, rows in task.load().items()}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_training_rows_that_a_given_test_repeats_are_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", reviews())
    write_csv(tmp_path / "test.csv", reviews(4))
    task = load_task(str(tmp_path))
    assert "left out 4 training rows whose input is also in validation or test" in task.notes
    found = inputs(task)
    assert not found["train"] & found["test"]
    assert len(found["test"]) == 4


def test_group_column_keeps_patients_together(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2, "patient": n % 17} for n in range(100)]
    task = load_task({"data": str(write_csv(tmp_path / "a.csv", rows)), "group": "patient"})
    found = [{example.fields["patient"] for example in rows} for rows in task.load().values()]
    assert not (found[0] & found[1])
    assert not (found[0] & found[2])
    assert not (found[1] & found[2])


def test_skipped_rows_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*reviews(), {"stars": 1, "review": "", "sentiment": "pos"}]
    path = write_csv(tmp_path / "reviews.csv", rows)
    with pytest.raises(UserError, match=r"reviews.csv, line 42: column 'review' is empty"):
        load_task(str(path))
    task = load_task({"data": str(path), "on_bad_row": "skip"})
    assert any("skipped 1 malformed row" in note and "line 42" in note for note in task.notes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12), st.sampled_from(["a", "b", "", "c"])
        ),
        min_size=1,
        max_size=40,
    )
)
def test_every_row_is_used_or_reported(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("task") / "data.csv"
    write_csv(path, [{"text": text, "label": label} for text, label in rows])
    wanted = [(text, label) for text, label in rows if text.strip() and label in ("a", "b")]
    try:
        task = load_task(
            {"data": str(path), "label": "label", "label_words": {"a": "A", "b": "B"}, "on_bad_row": "skip"}
        )
    except UserError as error:
        assert len({text for text, _ in wanted}) < 3, error  # noqa: PT017 (the data decides)
        return
    found = [(example.fields["text"], example.label) for examples in task.load().values() for example in examples]
    assert sorted(found) == sorted(wanted)
    empty = sum(not text.strip() and not label for text, label in rows)
    assert any(f"left out {empty} rows without any value" in note for note in task.notes) == bool(empty)
    if malformed := len(rows) - len(wanted) - empty:
        assert any(f"skipped {malformed} malformed row" in note for note in task.notes)


MISTAKES = {
    "column": ({"label": "sentimnt"}, "has no column 'sentimnt' (label).*Did you mean 'sentiment'"),
    "text": ({"text": "reveiw"}, "has no column 'reveiw' (text).*Did you mean 'review'"),
    "prompt": ({"prompt": "{reveiw}"}, "the prompt uses column 'reveiw'.*Did you mean 'review'"),
    "extra": ({"extra_prompts": ["{reveiw}"]}, "column 'reveiw'.*Did you mean 'review'"),
    "leak": ({"prompt": "{sentiment}", "label": "sentiment"}, "shows the answer: it uses column 'sentiment'"),
    "label": (
        {"label_words": {"positive": "good", "negative": "bad"}},
        "line 2: unknown label 'neg'. Did you mean 'negative'",
    ),
    "one label": ({"label_words": {"pos": "good"}}, "at least two labels"),
    "same word": ({"label_words": {"pos": "good", "neg": "good"}}, "label word 'good' for two labels"),
    "key": ({"lable": "sentiment"}, "unknown key 'lable' in task. Did you mean 'label'"),
    "value": ({"on_bad_row": "skp"}, "task.on_bad_row should be 'stop' or 'skip'; got 'skp'. Did you mean 'skip'?"),
    "type": ({"max_answer_tokens": "many"}, "task.max_answer_tokens should be a whole number; got 'many'."),
    "truth": (
        {"label": True},
        "task.label should be a text; got True. YAML reads yes, no, on and off as true and false",
    ),
    "column list": ({"text": ["review", 1]}, "task.text.1 should be a text; got 1."),
    "no list": ({"metrics": "f1"}, "task.metrics should be a list; got 'f1'. Write `metrics: .f1.`."),
    "class of a measure": (
        {"metric": "recall:Pos"},
        "measure 'recall:Pos': task 'reviews' has no label 'Pos'. Did you mean 'pos'. It has neg, pos.",
    ),
    "class of another": (
        {"metrics": ["f1:great"]},
        "measure 'f1:great': task 'reviews' has no label 'great'. It has neg, pos.",
    ),
    "both": ({"label": "sentiment", "target": "review"}, "not both"),
    "kinds": ({"kind": "classification", "target": "review"}, "has a label column"),
    "measure": ({"metric": "acuracy"}, "unknown measure 'acuracy'. Did you mean 'accuracy'"),
    "wrong measure": ({"metric": "bleu"}, "measure 'bleu' is for generation"),
    "test file": ({"test": "reviews.cvs"}, "no such file or folder: 'reviews.cvs'.*Did you mean 'reviews.csv'"),
    "hub key": ({"revision": "main"}, "`revision` belongs to a data set of the hub"),
    "mixing": ({"preset": "boolq"}, "exactly one of preset, data and mixture; given: preset and data"),
    "no words": (
        {"target": "review", "label_words": {"a": "b", "c": "d"}},
        "`label_words` belong to a classification task",
    ),
    "many": ({"label": "review"}, "is it a label"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, message = MISTAKES[name]
    write_csv(tmp_path / "reviews.csv", reviews(1200 if name == "many" else 40))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_task({"data": "reviews.csv", **changes})
    import re

    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), str(caught.value).replace("\n", " ")), str(
        caught.value
    )


def test_more_mistakes(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", [{"text": f"t{n}", "label": "same"} for n in range(9)])
    with pytest.raises(UserError, match="has one label"):
        load_task({"data": str(tmp_path / "one.csv"), "label": "label"})
    write_csv(tmp_path / "free.csv", [{"alpha": f"text {n}", "beta": f"other {n}"} for n in range(9)])
    with pytest.raises(UserError, match=r"cannot guess which column of .* is the answer; it has"):
        load_task(str(tmp_path / "free.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither train, validation and test files"):
        load_task(str(tmp_path / "empty"))
    write_csv(tmp_path / "few.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    with pytest.raises(UserError, match="2 different inputs cannot be divided"):
        load_task({"data": str(tmp_path / "few.csv"), "label": "label"})
    write_csv(tmp_path / "same.csv", reviews())
    with pytest.raises(UserError, match="nothing is left to train on"):
        load_task({"data": str(tmp_path / "same.csv"), "test": str(tmp_path / "same.csv")})


def test_every_field_of_the_config_is_documented() -> None:
    for name, field in TaskConfig.model_fields.items():
        assert field.description, name
