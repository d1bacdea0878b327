"""The command line: one message and exit code 2 for what a user can mend; valid JSON; quick help."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


def refused(command: Any, *arguments: object) -> str:
    """The one message of a refusal."""
    code, out, error = command(*arguments)
    assert code == 2, (out, error)
    assert error.startswith("error: ")
    assert error.count("error:") == 1
    assert "Traceback" not in error
    return str(error)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"sceds": 3}, ["unknown key 'sceds'. Did you mean 'seeds'?"]),
        ({"methods": ["lorra"]}, ["unknown method 'lorra'. Did you mean 'lora'?", "dollartune methods ls"]),
        ({"methods": [{"lora": {"rnak": 2}}]}, ["no setting 'rnak'. Did you mean 'rank'?"]),
        (
            {"methods": [{"lora": {"epochs": 2}}]},
            ["no setting 'epochs'. It stands under `training:`, not in a method."],
        ),
        ({"methods": [{"lora": {"tokens": 2}}]}, ["no setting 'tokens'. It is one of ", "prompt"]),
        ({"data_root": "nowhere"}, ["data_root: there is no folder"]),
        ({"source": {"tables": ["001.tabel1"]}}, ["unknown table '001.tabel1'. Did you mean '001.table1'?"]),
        ({"evaluation": {"general_text": "nowhere.txt"}}, ["evaluation.general_text: there is no file"]),
        ({"methods": [{"lora": {"where": "self_atn.q"}}]}, ["role 'self_atn.q'. Did you mean 'self_attn.q'?"]),
        ({"task": "bolq"}, ["unknown task 'bolq'. Did you mean 'boolq'?"]),
        ({"backbone": "tiny-decodr"}, ["unknown backbone 'tiny-decodr'. Did you mean 'tiny-decoder'?"]),
        ({"backbone": "./nowhere"}, ["is neither a directory nor a GGUF file"]),
        ({"scales": ["lo"]}, ["'lo' is not a valid scale. Did you mean 'low'?"]),
        ({"budget": "$1"}, ["need the price of this machine", "--price"]),
        ({"budget": "much"}, ["is not a length of time"]),
    ],
)
def test_a_misspelt_study(command: Any, study_file: Any, changes: dict[str, Any], sentences: list[str]) -> None:
    for verb in ("check", "run"):
        message = refused(command, verb, study_file(**changes))
        for sentence in sentences:
            assert sentence in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": "mod"}, "Did you mean 'mood'"),
        ({"prompt": "{txt}. Mood:"}, "Did you mean 'text'"),
        ({"data": "reviws.csv"}, "reviws.csv"),
        ({"label_words": {"god": "good", "bad": "bad"}}, "Did you mean 'god'"),
        ({"lable": "mood"}, "Did you mean 'label'"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_a_misspelt_column_label_or_file(
    command: Any, study_file: Any, reviews: Path, changes: dict[str, Any], sentence: str
) -> None:
    task = {"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood", **changes}
    assert sentence in refused(command, "check", study_file(task=task))


def test_a_malformed_row_has_its_line_and_the_choice_what_happens(
    command: Any, study_file: Any, reviews: Path, tmp_path: Path
) -> None:
    lines = reviews.read_text().splitlines()
    lines[4] = "a row without a label"
    data = tmp_path / "torn.csv"
    data.write_text("\n".join(lines))
    task = {"data": str(data), "prompt": "{text}. Mood:", "label": "mood"}
    message = refused(command, "check", study_file(task=task))
    assert "line 5" in message
    assert "on_bad_row: skip" in message
    code, out, _ = command("check", study_file(task={**task, "on_bad_row": "skip"}))
    assert code == 0
    assert "line 5" in out


def test_missing_files_of_every_verb(command: Any, study_file: Any, reviews: Path, tmp_path: Path) -> None:
    study_file()
    assert "Did you mean 'moods.yaml'" in refused(command, "run", tmp_path / "mods.yaml")
    for verb in ("status", "results", "report"):
        assert "there is no study in" in refused(command, verb, tmp_path / "nowhere")
    for verb in ("predict", "evaluate"):
        assert "is not an adapter" in refused(command, verb, tmp_path, reviews)
        assert "nowhere.csv" in refused(command, "predict", tmp_path, tmp_path / "nowhere.csv")
    assert "unknown method" in refused(command, "methods", "show", "lorra")
    assert "unknown task" in refused(command, "tasks", "show", "bolq")
    assert "nowhere.csv" in refused(command, "init", tmp_path / "nowhere.csv")


def test_usage_errors_end_with_two(command: Any) -> None:
    for arguments in (("rnu",), ("run",), ("run", "a.yaml", "--fersh"), ("count", "tiny-decoder", "--batch", "x")):
        code, _, error = command(*arguments)
        assert code == 2
        assert "Traceback" not in error


def test_ctrl_c_says_what_to_do(command: Any, study_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dollartune.study.api.Study.run", interrupted)
    code, _, error = command("run", study_file())
    assert code == 130
    assert "the same command goes on from here" in error


def strict(text: str) -> Any:
    """JSON without NaN."""

    def no_number(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=no_number)


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the tree, with the words that it is called by."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*words, name))
        else:
            yield (*words, name), one


def test_every_command_speaks_json() -> None:
    from typer.main import get_command

    from dollartune.cli.app import app

    found = dict(commands(get_command(app)))
    assert len(found) > 30
    assert not [words for words, one in found.items() if not any("--json" in p.opts for p in one.params)]


def test_what_a_study_prints_is_valid_json(command: Any, study_file: Any, tmp_path: Path) -> None:
    study = study_file(methods=["zero_shot", "bitfit"], scales=[8, "all"], seeds=1)
    code, out, _ = command("check", study, "--json")
    assert code == 0
    assert len(strict(out)["trials"]) == 4
    code, out, _ = command("run", study, "--json", "--no-report")
    assert code == 0
    assert [row["scale"] for row in strict(out)["leaderboard"]] == [8, 8, None, None]
    assert strict(command("status", study, "--json")[1])["done"] == 4
    assert len(strict(command("results", study, "--json")[1])) == 4
    assert len(strict(command("results", study, "--trials", "--json")[1])) == 4
    assert strict(command("run", study, "--json", "--no-report")[1])["no_score"] == []
    assert Path(strict(command("report", study, "--json")[1])["report"]).is_file()
    listed = strict(command("trials", "ls", study, "--json")[1])
    assert strict(command("trials", "rm", study, listed[0]["trial"], "--json")[1]) == {"deleted": [listed[0]["trial"]]}
    assert [row["done"] for row in strict(command("run", study, "--dry-run", "--json")[1])["trials"]].count(False) == 1
    command("run", study, "--no-report")
    code, out, _ = command("results", study)
    assert code == 0
    assert "8 training rows" in out
    assert "all training rows" in out
    (adapter, *_) = sorted((tmp_path / "studies" / "moods" / "trials").glob("*/adapter"))
    data = json.loads(json.dumps(yaml.safe_load(study.read_text())))["task"]["data"]
    code, out, _ = command("predict", adapter, data, "--limit", "3")
    rows = [strict(line) for line in out.splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ("methods", "ls"), ("methods", "show", "lora"), ("tasks", "ls"), ("tasks", "show", "boolq"), ("machines", "ls"),
        ("count", "tiny-decoder", "--method", "lora"),
    ],
)  # fmt: skip
def test_lists_are_valid_json_and_readable(command: Any, arguments: tuple[str, ...]) -> None:
    code, out, _ = command(*arguments, "--json")
    assert code == 0
    assert strict(out)
    code, out, _ = command(*arguments)
    assert code == 0
    assert out.strip()


@pytest.fixture(scope="session")
def flan_t5_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLAN-T5-XL's configuration; no weights."""
    folder = tmp_path_factory.mktemp("flan-t5-xl")
    config = {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True,
        "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32,
        "feed_forward_proj": "gated-gelu", "vocab_size": 32128, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("prompt(tokens=100, stacks='encoder')", 204_800),
        ("bitfit(where='all_linear')", 1_179_648),
        ("lora(rank=3, where='attention')", 3_538_944),
        ("lora(rank=3, where='attention', layers='first 50%')", 1_769_472),
        ("lora(rank=3, where='attention -self_attn')", 1_179_648),
        ("lora(rank=3, where='attention -cross_attn')", 2_359_296),
        ("lora(rank=3, where='attention -q -o')", 1_769_472),
        ("ia3(two_vectors=True)", 933_888),
        ("ia3", 540_672),
    ],
)
def test_counts_agree_with_the_published_table(command: Any, flan_t5_xl: Path, method: str, count: int) -> None:
    code, out, error = command("count", flan_t5_xl, "--method", method, "--json")
    assert code == 0, error
    found = strict(out)
    assert found["trainable_parameters"] == count
    assert sum(found["modules"].values()) == count
    assert found["total_parameters"] == 2_783_959_040


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['dollartune', '--help']\n"
        "from dollartune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'pydantic', 'transformers', 'pandas', 'numpy', 'yaml', 'scipy', 'rich.table'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "init", "check", "run", "status", "results", "report", "predict", "evaluate", "count"):
        assert verb in done.stdout


def test_the_entry_point(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("dollartune")
    if not program.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [program, "status", tmp_path / "nowhere"], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no study in")


def test_init_writes_a_study_that_check_accepts(command: Any, reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    code, text, error = command("init", reviews, "--out", out)
    assert code == 0, error
    assert f"dollartune check {out}" in text
    assert "exists already" in refused(command, "init", reviews, "--out", out)
    code, _, error = command("init", reviews, "--out", tmp_path / "asked.yaml", "--prompt", "Mood of {text}:")
    assert code == 0, error
    assert yaml.safe_load((tmp_path / "asked.yaml").read_text())["task"]["prompt"] == "Mood of {text}:"
    assert "Did you mean 'text'" in refused(
        command, "init", reviews, "--out", tmp_path / "no.yaml", "--prompt", "Mood of {txt}:"
    )
    code, text, error = command("check", out)
    assert code == 0, error
    assert "the study file is fine" in text
    assert "lora: lr from" in text
    assert "zero_shot: as it is" in text
    assert "lora: lr" not in command("check", out, "--set", "search=false")[1]


def test_init_writes_dollars_where_the_price_is_known(command: Any, reviews: Path, tmp_path: Path) -> None:
    for words, budget in (
        (("--machine", "v100-n1"), {"dollars": 0.096, "per": "method", "machine": "v100-n1"}),
        (("--price", "3/h"), {"dollars": 0.1, "per": "method", "price": "3/h"}),
    ):
        out = tmp_path / f"{words[0]}.yaml"
        assert command("init", reviews, "--out", out, *words)[0] == 0
        assert yaml.safe_load(out.read_text())["budget"] == budget
        assert command("check", out)[0] == 0
    assert "Did you mean 'v100-n1'" in refused(command, "init", reviews, "--out", tmp_path / "c", "--machine", "v100")


def test_a_trial_is_extended(command: Any, study_file: Any) -> None:
    study = study_file(methods=["bitfit"])
    command("run", study, "--no-report")
    (first,) = strict(command("trials", "ls", study, "--json")[1])
    code, out, error = command("trials", "extend", study, first["trial"][:7], "--steps", 1, "-q")
    assert code == 0, error
    assert "bitfit, +1 steps" in out
    assert "give one of them" in refused(
        command, "trials", "extend", study, first["trial"], "--steps", 1, "--epochs", 1
    )


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 1, ["the disk is full", "the same command goes on"]),
        (errno.EROFS, 2, ["read-only"]),
        (errno.ENAMETOOLONG, 2, ["longer than a name can be"]),
        (errno.EACCES, 2, ["no permission"]),
    ],
)
def test_what_a_place_does_not_take_is_one_sentence(
    command: Any, study_file: Any, monkeypatch: pytest.MonkeyPatch, number: int, code: int, words: list[str]
) -> None:
    def refusing(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("dollartune.trials.store.write_atomically", refusing)
    found, _, error = command("run", study_file(methods=["zero_shot"]), "--no-report")
    assert found == code
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in [*words, "study.yaml"]:
        assert word in last
