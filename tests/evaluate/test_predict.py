"""Using a tuned adapter: predictions for a file, resumable; scores on a task."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.answers_file import AnswersFile
from dollartune.evaluate.evaluation import Prediction
from dollartune.evaluate.labelled_rows import rows_of_file, rows_of_task
from dollartune.evaluate.predict import _chance, evaluate_rows, predict_file, read_rows
from dollartune.export.opening import open_adapter, stored_task
from dollartune.methods.stored_adapter import task_facts
from dollartune.study.api import Study
from dollartune.study.compare import standings
from dollartune.tasks.registry import load_task
from dollartune.trials.record import DoneRecord


@pytest.fixture
def tuned(study_of: Any) -> tuple[Path, DoneRecord, Study]:
    """(adapter, its record, the study)"""
    study = Study(study_of(methods=["lora(rank=2)"]))
    (record,) = study.run(display=Display()).done()
    return study.store.folder(record.id) / "adapter", record, study


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loaded_adapter_predicts_what_the_study_predicted(
    tuned: tuple[Path, DoneRecord, Study], tmp_path: Path
) -> None:
    folder, record, study = tuned
    stored = study.store.predictions(record.id)
    rows = load_task(study.settings.tasks[0]).splits(16, 0, 8).test
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"text": row.fields["text"]}) + "\n" for row in rows))
    predict_file(open_adapter(folder), read_rows(data), data, out, 4)
    found = lines(out)
    assert [line["row"] for line in found] == list(range(8))
    assert [line["prediction"] for line in found] == [row["predicted"] for row in stored]
    for line, row in zip(found, stored, strict=True):
        assert line["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)


def test_an_interrupted_prediction_goes_on(
    tuned: tuple[Path, DoneRecord, Study], reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = tuned
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    predict_file(open_adapter(folder), read_rows(reviews)[:20], reviews, whole, 2)
    text = whole.read_text()
    torn.write_text(text[: len(text) // 2])  # in the middle of a line
    shutil.copy(tmp_path / "whole.jsonl.source.json", tmp_path / "torn.jsonl.source.json")
    predict_file(open_adapter(folder), read_rows(reviews)[:20], reviews, torn, 2)
    assert "rows are there already" in capsys.readouterr().err
    assert [line["prediction"] for line in lines(torn)] == [line["prediction"] for line in lines(whole)]
    assert [line["row"] for line in lines(torn)] == list(range(20))


def test_a_missing_column(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("txt,mood\nhello,good\n")
    with pytest.raises(UserError, match=r"needs column 'text'.*Did you mean 'txt'"):
        predict_file(open_adapter(tuned[0]), read_rows(data), data, None, 2)


def test_a_malformed_row_has_its_line(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(data)


def test_scores_have_intervals(tuned: tuple[Path, DoneRecord, Study], reviews: Path) -> None:
    folder, record, study = tuned
    adapter, task = open_adapter(folder), load_task(study.settings.tasks[0])
    found = evaluate_rows(adapter, rows_of_task(adapter, task, 8), 4)
    assert found["scores"]["accuracy"] == record.test.scores["accuracy"]
    low, high = found["intervals"]["accuracy"]
    assert low <= found["scores"]["accuracy"] <= high
    assert found["examples"] == 8


def test_intervals_are_the_reports_and_know_groups(
    tuned: tuple[Path, DoneRecord, Study], reviews: Path, tmp_path: Path
) -> None:
    folder, _, study = tuned
    opened, task = open_adapter(folder), load_task(study.settings.tasks[0])
    rows = rows_of_task(opened, task, 8)
    (standing,) = standings(study.results())
    whole = evaluate_rows(opened, rows, 4)["intervals"]["accuracy"]
    assert whole == pytest.approx((standing["low"], standing["high"]))
    sites = tuple(replace(one, fields={**one.fields, "site": number // 4}) for number, one in enumerate(rows.examples))
    low, high = evaluate_rows(opened, replace(rows, examples=sites, group_column="site"), 4)["intervals"]["accuracy"]
    assert high - low > whole[1] - whole[0]
    assert evaluate_rows(opened, replace(rows, examples=sites[:1]), 4)["intervals"] == {}
    # An adapter remembers the column, and a file that has it is scored by it.
    facts = task_facts(replace(task, group_column="site"), opened.backbone)
    opened.task = stored_task({"task": facts})
    data = tmp_path / "sites.csv"
    first = next(csv.DictReader(reviews.open()))
    data.write_text(f"text,{task.answer_column},site\nfine,{first[task.answer_column]},7\n")
    held_out = rows_of_file(opened, data, None, "stop")
    assert held_out.group_column == "site"
    assert held_out.examples[0].fields["site"] is not None


def run(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


def test_a_file_is_scored_whole_but_for_rows_that_the_adapter_has_seen(
    tuned: tuple[Path, DoneRecord, Study], reviews: Path, tmp_path: Path
) -> None:
    folder, _, study = tuned
    splits = load_task(study.settings.tasks[0]).splits(16, study.settings.data_seed, 8)
    known = len(splits.train) + len(splits.validation)
    rows = list(csv.DictReader(reviews.open()))
    output = run("evaluate", str(folder), str(reviews))
    assert f"left out {known} of {len(rows)} rows: {len(splits.train)} that the adapter was trained on" in output
    assert "reviews.csv, line" in output
    assert f"{len(rows) - known} rows in" in output
    whole = run("evaluate", str(folder), str(reviews), "--all-rows")
    assert "no test: among the" in whole
    assert f"{len(rows)} rows in" in whole


def test_empty_rows_are_left_out_as_in_tuning(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    opened, data = open_adapter(tuned[0]), tmp_path / "rows.csv"
    data.write_text(f"text,{opened.task.answer_column}\nfine day,good\n,\nrainy day,bad\n , \n")
    labelled = rows_of_file(opened, data, None, "stop")
    assert [example.id for example in labelled.examples] == ["rows.csv, line 2", "rows.csv, line 4"]
    assert any("left out 2 rows without any value" in note for note in labelled.notes)
    assert len(read_rows(data)) == 4, "predictions are numbered as the file is"
    data.write_text(f"text,{opened.task.answer_column}\n,\n")
    with pytest.raises(UserError, match="no usable row"):
        rows_of_file(opened, data, None, "stop")


def test_a_hold_out_need_not_have_every_class(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    label = tuned[2].settings.tasks[0]["label"] if isinstance(tuned[2].settings.tasks[0], dict) else "mood"
    data = tmp_path / "held_out.csv"
    rows = "".join(f"a new line with number {n},{' GOOD' if n % 2 else 'good'}\n" for n in range(20))
    data.write_text(f"text,{label}\n{rows}")
    output = run("evaluate", str(tuned[0]), str(data))
    assert "20 rows in" in output
    assert "no row has 1 of the adapter's 2 classes ('bad')" in output
    data.write_text(f"text,{label}\n{rows}no label,\n")
    with pytest.raises(UserError, match=r"line 22: column .* is empty"):
        run("evaluate", str(tuned[0]), str(data))
    assert "20 rows in" in run("evaluate", str(tuned[0]), str(data), "--on-bad-row", "skip")
    data.write_text(f"text,other\n{rows}")
    with pytest.raises(UserError, match="--label COLUMN"):
        run("evaluate", str(tuned[0]), str(data))
    assert "20 rows in" in run("evaluate", str(tuned[0]), str(data), "--label", "other")


def test_a_file_is_asked_with_the_adapters_own_prompt_and_words(study_of: Any, reviews: Path, tmp_path: Path) -> None:
    words = {"good": "a pleasant one", "bad": "dull"}
    task = {"data": str(reviews), "prompt": "Read: {text}\nIt was", "label": "mood", "label_words": words}
    study = Study(study_of(methods=["lora(rank=2)"], task=task))
    (record,) = study.run(display=Display()).done()
    stored = study.store.predictions(record.id)
    rows = load_task(task).splits(16, 0, 8).test
    file = tmp_path / "held_out.csv"  # its columns alone say nothing of prompt and words
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["text", "mood"], *([row.fields["text"], row.label] for row in rows)])
    folder = study.store.folder(record.id) / "adapter"
    answers = [json.loads(line) for line in run("predict", str(folder), str(file)).splitlines() if line.startswith("{")]
    for answer, row in zip(answers, stored, strict=True):
        assert answer["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)
    evaluated = json.loads(run("evaluate", str(folder), str(file), "--json", "--all-rows"))
    assert evaluated["scores"] == pytest.approx(record.test.scores, abs=1e-4)
    # Asked as the file alone would be, it answers otherwise.
    info = json.loads((folder / "adapter.json").read_text())
    guessed = {**info["task"], "prompt": "{text}\n\nMood:", "label_words": {"good": "good", "bad": "bad"}}
    (folder / "adapter.json").write_text(json.dumps({**info, "task": guessed}))
    others = [json.loads(line) for line in run("predict", str(folder), str(file)).splitlines() if line.startswith("{")]
    assert others[0]["probabilities"] != pytest.approx(stored[0]["probabilities"], abs=1e-3)


def test_a_file_of_answers_belongs_to_one_adapter_and_one_input(
    tuned: tuple[Path, DoneRecord, Study], tmp_path: Path
) -> None:
    folder, _, _ = tuned
    other, out = tmp_path / "other", tmp_path / "out.jsonl"
    shutil.copytree(folder, other)
    info = json.loads((other / "adapter.json").read_text())
    (other / "adapter.json").write_text(json.dumps({**info, "max_length": 16}))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(6)))
    two.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(6)))
    run("predict", str(folder), str(one), "--out", str(out), "--limit", "4")
    assert len(lines(out)) == 4
    run("predict", str(folder), str(one), "--out", str(out))  # the same work goes on
    before = out.read_text()
    assert len(lines(out)) == 6
    with pytest.raises(UserError, match=r"(?s)another adapter.*--restart"):
        run("predict", str(other), str(one), "--out", str(out))
    with pytest.raises(UserError, match=r"other rows \(one.jsonl\)"):
        run("predict", str(folder), str(two), "--out", str(out))
    assert out.read_text() == before
    run("predict", str(folder), str(two), "--out", str(out), "--restart")
    assert out.read_text() != before
    stranger = tmp_path / "stranger.jsonl"
    stranger.write_text("{}\n")
    with pytest.raises(UserError, match="nothing beside it says whose answers"):
        run("predict", str(folder), str(one), "--out", str(stranger))
    for nowhere in (tmp_path, tmp_path / "no" / "p.jsonl"):
        with pytest.raises(UserError, match="Name a file in an existing folder"):
            run("predict", str(folder), str(one), "--out", str(nowhere))


def test_texts_in_place_of_a_file(tuned: tuple[Path, DoneRecord, Study]) -> None:
    answers = run("predict", str(tuned[0]), "--text", "what a fine day", "--text", "rain again")
    said = [json.loads(line) for line in answers.splitlines() if line.startswith("{")]
    assert len(said) == 2
    assert {row["prediction"] for row in said} <= {"good", "bad"}
    piped = CliRunner().invoke(app, ["predict", str(tuned[0]), "-"], input="what a fine day\nrain again\n")
    assert piped.output == answers
    for neither_or_both in ([], ["rows.csv", "--text", "what a fine day"]):
        with pytest.raises(UserError, match="a file or texts"):
            run("predict", str(tuned[0]), *neither_or_both)


def test_what_was_meant_is_said_with_the_command(tuned: tuple[Path, DoneRecord, Study]) -> None:
    folder = tuned[0]
    with pytest.raises(UserError, match="--text 'what a fine day'"):
        run("predict", str(folder), "what a fine day")
    with pytest.raises(UserError, match=r"(?s)served with its backbone.*dollartune serve .* --adapter tuned="):
        run("serve", str(folder))
    with pytest.raises(UserError, match=rf"(?s)is not an adapter.*Inside it: .*{folder.name}"):
        run("predict", str(tuned[2].store.root), "--text", "what a fine day")


def test_csv_comes_back_with_its_columns(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    data, out, torn = tmp_path / "rows.csv", tmp_path / "out.csv", tmp_path / "torn.csv"
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "text"], *([n, f'line, "{n}"\nand more'] for n in range(12)), [12, " "]])
    run("predict", str(tuned[0]), str(data), "--out", str(out), "--batch-size", "1")
    with out.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["id"] for row in found] == [str(n) for n in range(13)]
    assert found[3]["text"] == 'line, "3"\nand more'
    assert {row["prediction"] for row in found[:12]} <= {"good", "bad"}
    assert sum(float(found[0][f"probability of {label}"]) for label in ("good", "bad")) == pytest.approx(1, abs=1e-4)
    assert (found[12]["prediction"], found[12]["problem"]) == ("", "column 'text' is empty")
    content = out.read_text()
    shutil.copy(tmp_path / "out.csv.source.json", tmp_path / "torn.csv.source.json")
    for end in (len(content) // 2, len(content) // 3, 5):
        torn.write_text(content[:end])
        run("predict", str(tuned[0]), str(data), "--out", str(torn), "--batch-size", "1")
        assert torn.read_text() == content


def test_rows_without_text_are_counted_and_cut_ones_too(
    tuned: tuple[Path, DoneRecord, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": "fine"},
        {"text": None},
        {},
        {"text": float("nan")},
        {"text": "long " * 2000},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = open_adapter(tuned[0])
    predict_file(opened, read_rows(data), data, out, 2)
    said = capsys.readouterr().err
    assert "3 of 5 rows have nothing to read" in said
    assert f"1 of 5 rows are longer than the adapter's {opened.encoder.max_length} tokens" in said
    assert [line["prediction"] is None for line in lines(out)] == [False, True, True, True, False]


def test_a_local_backbone_works_from_any_folder(
    study_of: Any, local_backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local_backbone("llama")
    monkeypatch.chdir(model.parent)
    study = Study(study_of(backbone=f"./{model.name}", methods=["lora(rank=2)"]))
    (record,) = study.run(display=Display()).done()
    folder = (study.store.folder(record.id) / "adapter").resolve()
    monkeypatch.chdir(tmp_path)
    assert open_adapter(folder).backbone.kind == "decoder"


def test_other_labels_are_refused(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    data = tmp_path / "other.csv"
    data.write_text("text,mood\n" + "".join(f"line {n},{'yes' if n % 2 else 'no'}\n" for n in range(20)))
    with pytest.raises(UserError, match=r"knows the labels \('bad', 'good'\)"):
        rows_of_task(open_adapter(tuned[0]), load_task(str(data)), 8)


def test_another_tokenizer_is_noticed(tuned: tuple[Path, DoneRecord, Study]) -> None:
    path = tuned[0] / "adapter.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "tokenizer": "0" * 16}))
    with pytest.raises(UserError, match="is not the one that"):
        open_adapter(tuned[0])


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an adapter"):
        open_adapter(tmp_path)
    (tmp_path / "adapter.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_adapter(tmp_path)
    (tmp_path / "adapter.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="has format 99"):
        open_adapter(tmp_path)


SOURCE = {"adapter": "a", "rows": "b"}


@pytest.mark.parametrize(
    "value", ["one\ntwo\nthree", "one\rtwo", "x" * 200_000 + "\ny"], ids=["lines", "return", "long"]
)
def test_a_csv_that_is_torn_anywhere_goes_on_with_its_whole_records(tmp_path: Path, value: str) -> None:
    path = tmp_path / "out.csv"
    file = AnswersFile(path, ["id"], [], False)
    assert file.begin(SOURCE, restart=False) == 0
    written = [path.read_bytes()]
    with file.open() as stream:
        for number in range(3):
            stream.write(file.lines(number, {"id": str(number)}, Prediction(str(number), value, "", False), None))
            stream.flush()
            written.append(path.read_bytes())
    content = written[-1]
    step = max(1, len(content) // 200)
    for end in [*range(1, len(content), step), len(content) - 1, len(content)]:
        path.write_bytes(content[:end])
        again = AnswersFile(path, ["id"], [], False)
        done = again.begin(SOURCE, restart=False)
        again.open().close()
        whole = max((n for n, whole in enumerate(written) if len(whole) <= end), default=0)
        assert done == whole, end
        assert path.read_bytes() == written[whole], end


def test_two_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    first = AnswersFile(tmp_path / "out.jsonl", [], [], False)
    first.begin(SOURCE, restart=False)
    with pytest.raises(UserError, match="another process is writing"):
        AnswersFile(tmp_path / "out.jsonl", [], [], False).begin(SOURCE, restart=True)
    with first.open() as stream:
        stream.write("{}\n")
    assert AnswersFile(tmp_path / "out.jsonl", [], [], False).begin(SOURCE, restart=False) == 1


@pytest.mark.parametrize(
    ("metric", "low", "constant"),
    [("accuracy", 0.55, 0.6), ("accuracy", 0.61, None), ("f1", 0.3, 0.375), ("f1", 0.4, None), ("f1:a", 0.1, None)],
)
def test_a_score_that_may_be_chance_is_called_so(metric: str, low: float, constant: float | None) -> None:
    """Of 60 rows of one class and 40 of another, by the measure of the task."""
    task: Any = SimpleNamespace(metric=metric)
    rows: Any = [SimpleNamespace(label="a" if n < 60 else "b") for n in range(100)]
    between: Any = SimpleNamespace(low=low)
    said = _chance(task, rows, between)
    told = None if constant is None else f"always saying 'a' would score {constant:.4f} on these rows"
    assert said is None if told is None else told in (said or "")
    assert _chance(task, rows[:60], between) is None, "rows of one class have no other answer"
    assert _chance(task, rows, None) is None
