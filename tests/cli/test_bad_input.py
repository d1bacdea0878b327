"""What is given wrongly to verbs that use adapters or write files: told before anything is done, and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.export.opening import open_adapter
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.tuning import need_place_for_adapter, nothing_handed_over

HERE = [sys.executable, "-c", "from dollartune.cli import main; main()"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, local_backbone: Any, reviews: Path) -> Path:
    """A probe, solved in a second, of texts `text` with labels `mood`."""
    study = Study(
        backbone=str(local_backbone("llama")), task={"data": str(reviews), "label": "mood"}, methods=["linear_probe"],
        scales=["all"], seeds=1,
        evaluation={"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False},
        name="study", output=str(tmp_path_factory.mktemp("probe")),
    )  # fmt: skip
    (record,) = study.run(display=Display()).done()
    return study.store.folder(record.id) / "adapter"


def refused(command: Any, *arguments: object) -> str:
    code, out, error = command(*arguments)
    assert code == 2, (code, out, error)
    assert "Traceback" not in error
    return str(error)


def test_the_file_that_is_read_is_never_written_over(
    command: Any, adapter: Path, reviews: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copy(reviews, tmp_path / "mine.csv"))
    (tmp_path / "inner").mkdir()
    before, same = data.read_bytes(), tmp_path / "inner" / ".." / "mine.csv"
    for words in (("predict", adapter, data, "--out", same), ("predict", adapter, data, "--out", data, "--restart"),
                  ("doubts", adapter, data, "--out", same)):  # fmt: skip
        assert "is the file that is read; it would be lost" in refused(command, *words)
    other = tmp_path / "other.csv"
    other.write_text("mine\n")
    assert "exists, and holds no doubts" in refused(command, "doubts", adapter, data, "--out", other)
    assert (data.read_bytes(), other.read_text()) == (before, "mine\n")
    assert "there is no folder" in refused(command, "doubts", adapter, data, "--out", tmp_path / "no" / "x.csv")
    assert "inner' is a folder.\n" in refused(command, "doubts", adapter, data, "--out", tmp_path / "inner")
    for _ in range(2):  # its own file is made anew
        assert command("doubts", adapter, data, "--out", tmp_path / "doubts.csv")[0] == 0


def test_an_ending_that_means_another_format_is_refused(
    command: Any, adapter: Path, reviews: Path, tmp_path: Path
) -> None:
    message = refused(command, "predict", adapter, reviews, "--out", tmp_path / "answers.parquet")
    assert "predictions are written as json lines or csv, not as .parquet" in message
    assert not list(tmp_path.glob("answers*"))


def test_a_misspelt_label_column_doubts_nothing(command: Any, adapter: Path, reviews: Path) -> None:
    assert "no column 'mod' with labels; it has ['text', 'mood']. Did you mean 'mood'?" in refused(
        command, "doubts", adapter, reviews, "--label", "mod"
    )


def test_adapter_and_data_in_the_wrong_order(command: Any, adapter: Path, reviews: Path) -> None:
    for verb in ("predict", "evaluate", "doubts"):
        message = refused(command, verb, reviews, adapter)
        assert f"{verb} takes the adapter first, then the data." in message
        assert f"dollartune {verb} {adapter} {reviews}" in message
    message = refused(command, "tune", reviews, "tiny-encoder")
    assert f"dollartune tune tiny-encoder {reviews}" in message


def test_a_text_in_place_of_a_file(command: Any, adapter: Path) -> None:
    for text in ("what a fine day " * 100, "x" * 5000):
        refused(command, "predict", adapter, text)
    assert "got both 'rows.csv' and --text" in refused(command, "predict", adapter, "rows.csv", "--text", "a")


def test_standard_input(command: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ("", "\n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(nothing))
        assert "standard input holds no text" in refused(command, "predict", adapter, "-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf8"))
    assert "standard input is not a text in UTF-8" in refused(command, "predict", adapter, "-")
    # a form feed or a line separator inside a text ends no line
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fine\x0cday\n\nrain\u2028again"))
    code, out, _ = command("predict", adapter, "-")
    assert code == 0
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 1, 2]
    assert [json.loads(line)["prediction"] is None for line in out.splitlines()] == [False, True, False]


def test_options_that_would_do_nothing_are_refused(command: Any, adapter: Path, reviews: Path, tmp_path: Path) -> None:
    for words, told in (
        (
            ("export", adapter, "--out", tmp_path / "a", "--examples", reviews),
            "--examples is for --format merged or gguf",
        ),
        (
            ("export", adapter, "--out", tmp_path / "a", "--format", "head", "--rank", "4"),
            "--rank is for --format lora",
        ),
        (("export", adapter, "--out", tmp_path / "a", "--public"), "--public is for --push"),
        (
            ("merge-adapters", adapter, adapter, "--out", tmp_path / "a", "--density", "0.3"),
            "--density is for --how ties",
        ),
        (
            ("merge-adapters", adapter, adapter, "--out", tmp_path / "a", "--how", "ties", "--seed", "0"),
            "--seed is for --how dare",
        ),
        (("evaluate", adapter, "demo_library", "--label", "mood"), "--label is for a file of rows"),
        (("evaluate", adapter, "demo_library", "--on-bad-row", "skip"), "--on-bad-row is for a file of rows"),
    ):
        assert told in refused(command, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["run", "a.yaml", "--methods", "lora", "--methods", "full"],
        ["check", "a.yaml", "--scales", "100", "--scales=1000"],
        ["tune", "demo_library", "--budget", "1 min", "--budget", "2 min"],
        ["advise", "-n", "100", "--examples", "200"],
    ],
)
def test_an_option_given_twice_is_not_taken_once(command: Any, words: list[str]) -> None:
    assert "is given twice; it takes one value" in refused(command, *words)


def test_options_that_may_be_repeated_and_flags_still_may(command: Any) -> None:
    code, out, _ = command("count", "tiny-encoder", "-m", "lora", "-m", "bitfit", "--json", "--json")
    assert code == 0
    assert json.loads(out)["trainable_parameters"] > 0


def test_what_is_no_adapter_is_told_what_it_is(
    command: Any, adapter: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    assert "there is no such folder. Did you mean 'adapter'?" in refused(
        command, "evaluate", tmp_path / "adaptr", reviews
    )
    assert "it is a file, and an adapter is a folder" in refused(command, "evaluate", reviews, reviews)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "adapter_config.json").write_text("{}")
    message = refused(command, "evaluate", theirs, reviews)
    assert "it is one of the peft library" in message
    assert f"dollartune import {theirs} --out FOLDER" in message
    assert "is an adapter of DollarTune already" in refused(command, "import", beside, "--out", tmp_path / "o")
    assert "there is no such folder" in refused(command, "import", tmp_path / "nothing", "--out", tmp_path / "o")
    message = refused(command, "serve", "tiny-encoder", "--adapter", beside)
    assert f"--adapter tuned={beside}" in message


def test_an_adapter_on_another_backbone_says_whose_it_is(command: Any, adapter: Path, tmp_path: Path) -> None:
    info = json.loads((adapter / "adapter.json").read_text())
    info.pop("tokenizer")
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    (other / "adapter.json").write_text(json.dumps(info))
    message = refused(command, "export", other, "--out", tmp_path / "o", "--backbone", "tiny-decoder")
    assert "does not fit 'tiny-decoder'" in message
    assert f"It was tuned on {info['backbone']!r}" in message


def test_a_server_is_not_begun_where_it_cannot_run(command: Any, tmp_path: Path) -> None:
    for device in ("gpu0", "cuda:99"):
        message = refused(command, "serve", "tiny-encoder", "--device", device)
        assert f"--device {device!r} cannot be used here" in message
    assert "--adapter-root: there is no folder" in refused(
        command, "serve", "tiny-encoder", "--adapter-root", tmp_path / "nothing"
    )


def test_a_folder_of_somebody_elses_is_not_replaced_by_an_adapter(command: Any, adapter: Path, tmp_path: Path) -> None:
    mine = tmp_path / "adapter" / "mine.txt"
    mine.parent.mkdir()
    need_place_for_adapter(tmp_path)  # empty
    mine.write_text("mine")
    assert "is no adapter, and would be replaced by one" in refused(
        command, "tune", "tiny-encoder", "demo_library", "--out", tmp_path, "--budget", "1 min"
    )
    assert mine.read_text() == "mine"
    need_place_for_adapter(adapter.parent)


def test_more_money_is_advised_only_where_it_would_help(adapter: Path) -> None:
    store = Study(name="none", output=str(adapter), backbone="tiny-encoder", task="boolq", methods=["lora"]).store
    assert "Raise --budget" in str(nothing_handed_over(store, None).hint)
    assert "Raise" not in str(nothing_handed_over(store, None, all_failed=True).hint)


def test_init(command: Any, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(reviews, tmp_path / "reviews.csv")
    monkeypatch.chdir(tmp_path)
    message = refused(command, "init", "boolq")
    assert "'boolq' is a preset" in message
    assert "dollartune tune boolq" in message
    assert "Did you mean 'tiny-encoder'" in refused(command, "init", "reviews.csv", "--backbone", "tiny-encodr")
    assert not list(tmp_path.glob("*.yaml"))
    # the file counts paths from where it lies, wherever it is run
    assert command("init", "reviews.csv", "--out", "deep/er/study.yaml")[0] == 0
    monkeypatch.chdir(tmp_path / "deep")
    assert command("check", "er/study.yaml")[0] == 0
    # through a link the folder above is another
    (tmp_path / "elsewhere").symlink_to(tmp_path / "deep" / "er")
    assert command("init", "../reviews.csv", "--out", "../elsewhere/again.yaml")[0] == 0
    monkeypatch.chdir(tmp_path / "deep" / "er")  # where `../reviews.csv` is nothing
    assert command("check", "again.yaml")[0] == 0
    monkeypatch.chdir(tmp_path / "deep")
    (tmp_path / "deep" / "taken").mkdir()
    assert "'taken' is a folder; a file is wanted" in refused(command, "schema", "--out", "taken")


def test_a_reader_that_goes_away_is_no_error() -> None:
    for words in (["methods", "ls"], ["methods", "show", "lora"], ["schema"]):
        process = subprocess.Popen([*HERE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")
        process.stderr.close()


def test_standard_output_that_was_closed_is_no_error() -> None:
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *HERE, "methods", "ls"]
    done = subprocess.run(words, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_letters_that_the_terminal_has_not(tmp_path: Path) -> None:
    data = tmp_path / "greek.csv"
    data.write_text(
        "text,διάθεση\n" + "".join(f"κείμενο {n},{'καλή' if n % 2 else 'κακή'}\n" for n in range(20)), "utf8"
    )
    few = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40", "NO_COLOR": "1"}
    words = ["init", str(data), "--out", str(tmp_path / "s.yaml")]
    done = subprocess.run([*HERE, *words], env=few, capture_output=True, check=True)
    assert b"\\u03b4" in done.stdout
    done = subprocess.run([*HERE, *words, "--force", "--json"], env=few, capture_output=True, check=True)
    assert json.loads(done.stdout)["task"]["label"] == "διάθεση"


def test_python_takes_paths_and_refuses_what_is_no_data(adapter: Path, reviews: Path, tmp_path: Path) -> None:
    import pandas

    from dollartune import load_backbone, load_task, tune

    study = Study(task=Path(reviews), backbone={"name": "tiny-encoder"}, methods=["lora"], output=tmp_path)  # type: ignore[arg-type]
    assert study.settings.tasks == (str(reviews),)
    several = load_study({"backbone": "tiny-encoder", "tasks": (reviews, "rte"), "methods": ["lora"]})
    assert several.tasks == (str(reviews), "rte")
    assert load_task(Path(reviews)).name == reviews.stem
    assert open_adapter(str(adapter)).folder == adapter
    with pytest.raises(UserError, match="neither a directory"):
        load_backbone(tmp_path / "nothing")
    texts = pandas.Series(["a", "b"])
    for wrong in (None, 5, {"data": "rows.csv"}):
        with pytest.raises(UserError, match=r"is not understood; expected a file, a preset's name"):
            tune(wrong, out=tmp_path)
    with pytest.raises(UserError, match="data of type Series is not understood"):
        tune(texts, out=tmp_path)
    for key in ("rows", "seeds", "trials"):
        with pytest.raises(UserError, match=f"{key} is a number from 1 up; got 0"):
            tune(str(reviews), "tiny-encoder", out=tmp_path, **{key: 0})  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_costs_time_only(
    command: Any, study_file: Any, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")  # root may write everywhere else
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(taken / "cache"))
    out = tmp_path / "new.yaml"
    assert command("init", reviews, "--out", out)[0] == 0
    assert "$schema" not in out.read_text()
    path = study_file(methods=["bitfit"])
    for words in (("check", path, "--full"), ("plan", path), ("run", path, "--no-report")):
        code, _, error = command(*words)
        assert code == 0, (words, error)
    assert taken.read_text() == "a file"
