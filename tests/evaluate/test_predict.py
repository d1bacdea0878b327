"""Using a tuned adapter: predictions for a file, resumable; scores on a task."""

import json
from pathlib import Path
from typing import Any

import pytest

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.predict import evaluate_adapter, predict_file, read_rows
from dollartune.export.opening import open_adapter
from dollartune.study.api import Study
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
    found = evaluate_adapter(open_adapter(folder), load_task(study.settings.tasks[0]), 8, 4)
    assert found["scores"]["accuracy"] == record.test.scores["accuracy"]
    low, high = found["intervals"]["accuracy"]
    assert low <= found["scores"]["accuracy"] <= high
    assert found["examples"] == 8


def test_other_labels_are_refused(tuned: tuple[Path, DoneRecord, Study], tmp_path: Path) -> None:
    data = tmp_path / "other.csv"
    data.write_text("text,mood\n" + "".join(f"line {n},{'yes' if n % 2 else 'no'}\n" for n in range(20)))
    with pytest.raises(UserError, match=r"knows the labels \('bad', 'good'\)"):
        evaluate_adapter(open_adapter(tuned[0]), load_task(str(data)), 8, 4)


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
