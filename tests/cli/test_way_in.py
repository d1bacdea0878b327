"""The first commands of a new user: version, help, a wrong file, doctor, schema, cache, options in place of the file's keys."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dollartune.study.file_schema import study_schema
from dollartune.study_file import load_study, read_assignments, read_seeds, split_methods

ROOT = Path(__file__).parents[2]
ALONE = """
import sys
from dollartune.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("CODE", code, "TORCH", "torch" in sys.modules, file=sys.stderr)
"""


def alone(*arguments: object) -> str:
    """The end of standard error of the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()[-1]


def test_version_help_and_wrong_files_need_no_torch(tmp_path: Path, reviews: Path) -> None:
    wrong = {"backbone": "tiny-decoder", "task": str(reviews), "methods": ["lora"]}
    for change in ({"sceds": 3}, {"methods": ["lorra"]}, {"methods": [{"lora": {"rnak": 1}}]}, {"backbone": "tiny-decodr"},
                   {"task": {"data": str(reviews), "label": "mod"}}, {"budget": "$1"}):  # fmt: skip
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({**wrong, **change}))
        assert alone("check", path) == "CODE 2 TORCH False", change
    for words in (["--version"], ["-h"], ["run", "-h"], ["schema", "--out", tmp_path / "s.json"], ["cache", "ls"]):
        assert alone(*words) == "CODE 0 TORCH False", words
    assert alone("init", reviews, "--out", tmp_path / "new.yaml") == "CODE 0 TORCH False"


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--version"], []),
        (["methods", "ls", "-h"], ["app", "catalog", "options", "output"]),
        (["cache", "ls", "-h"], ["app", "machine", "options", "output"]),
    ],
)
def test_no_other_verbs_are_loaded(words: list[str], loaded: list[str]) -> None:
    """Imports are counted, not seconds."""
    script = (
        "import sys\nfrom dollartune.cli import main\n"
        f"sys.argv = ['dollartune', *{words}]\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print(*sorted(name for name in sys.modules if name.startswith('dollartune.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == [f"dollartune.cli.{name}" for name in loaded]


def test_every_verb_has_its_function() -> None:
    from typer.main import get_command

    from dollartune.cli.app import GROUPS, VERBS, app

    group = get_command(app)
    assert {*GROUPS, *(verb for verb in VERBS if " " not in verb)} == set(group.commands)  # type: ignore[attr-defined]
    for verb in VERBS:
        found: Any = group
        for word in verb.split():
            found = found.commands[word]
        assert found.callback is not None
        assert found.help


def test_version_is_printed_and_there_from_python(command: Any) -> None:
    import dollartune

    code, out, _ = command("--version")
    assert (code, out) == (0, f"dollartune {dollartune.__version__}\n")
    assert {"Study", "tune", "attach"} <= set(dir(dollartune))
    assert not {"Any", "annotations", "import_module", "TYPE_CHECKING"} & set(dir(dollartune)), "noise in completion"


def test_help_names_the_exit_statuses_and_every_verb_has_a_short_h(command: Any) -> None:
    code, out, _ = command("-h")
    assert code == 0
    assert "Exit status: 0" in out
    for verb in ("run", "compare", "trials", "cache"):
        code, out, _ = command(verb, "-h")
        assert code == 0
        assert "Usage:" in out


def test_completion_can_be_installed(command: Any) -> None:
    assert "--install-completion" in command("-h")[1]


def test_quiet_leaves_out_notes_before_and_behind_the_verb(command: Any, reviews: Path, tmp_path: Path) -> None:
    noisy = command("init", reviews, "--out", tmp_path / "a.yaml")[1]
    assert "note: " in noisy
    assert "note: " not in command("init", reviews, "-q", "--out", tmp_path / "b.yaml")[1]
    assert "note: " not in command("--quiet", "init", reviews, "--out", tmp_path / "c.yaml")[1]


def test_doctor_says_what_there_is(command: Any) -> None:
    code, out, _ = command("doctor", "--json")
    found = {one["what"]: one for one in json.loads(out)}
    assert found["torch"]["state"] == "ok"
    assert {"bf16", "GPU" if "GPU" in found else "GPU 0", "cache", "report"} <= set(found)
    assert code == (1 if any(one["state"] == "warning" for one in found.values()) else 0)
    assert "processor" in command("doctor")[1]


def test_cache_is_listed_and_only_what_is_ours_is_deleted(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))
    (tmp_path / "outlines").mkdir()
    (tmp_path / "outlines" / "one.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    assert [part["name"] for part in json.loads(command("cache", "ls", "--json")[1])["parts"]] == ["outlines"]
    assert "Did you mean 'outlines'" in command("cache", "clean", "outlnes")[2]
    assert command("cache", "clean")[0] == 0
    assert not (tmp_path / "outlines").exists()
    assert (tmp_path / "thesis.tex").exists()


def test_every_example_holds_to_the_schema() -> None:
    validator, paths = jsonschema.Draft202012Validator(study_schema()), sorted((ROOT / "examples").rglob("*.yaml"))
    assert paths
    for path in paths:  # all of them are study files
        validator.validate(yaml.safe_load(path.read_text()))


def test_the_schema_refuses_what_the_program_refuses(study_of: Any) -> None:
    good, validator = study_of(), jsonschema.Draft202012Validator(study_schema())
    validator.check_schema(validator.schema)
    validator.validate(good)
    for change in ({"sceds": 3}, {"seeds": 0}, {"methods": []}, {"methods": [{"lora": {"rnak": 1}}]}, {"scales": ["lo"]},
                   {"training": {"epoch": 1}}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**good, **change})


def test_a_new_file_names_its_schema_and_has_a_comment_at_every_key(
    command: Any, reviews: Path, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    assert command("init", reviews, "--out", path)[0] == 0
    text = path.read_text()
    first, *lines = text.splitlines()
    assert first.startswith("# yaml-language-server: $schema=")
    jsonschema.validate(yaml.safe_load(text), json.loads(Path(first.partition("=")[2]).read_text()))
    for number, line in enumerate(lines):
        if line[:1].isalpha():
            assert lines[number - 1].startswith("# "), line
    assert load_study(path).methods


def test_options_stand_in_for_the_files_keys(study_file: Any) -> None:
    path = study_file()
    found = load_study(
        path,
        sets=read_assignments(["training.batch_size=16", "evaluation.rows=4", "search=true"]),
        seeds=read_seeds("2"),
        methods=split_methods("lora(rank=2, alpha=4),bitfit"),
    )
    assert (found.training.batch_size, found.training.epochs, found.evaluation.rows) == (16, 1, 4)
    assert found.search is not None
    assert found.seeds == (0, 1)
    assert found.methods == ["lora(rank=2, alpha=4)", "bitfit"]
    assert read_seeds("3,") == [3]


def test_a_price_can_be_set_beside_an_amount_in_one_word(study_file: Any) -> None:
    found = load_study(study_file(), sets=read_assignments(["budget.price=2/h"]), budget="$2").budget
    assert found is not None
    assert (found.dollars, found.per, found.price) == (2.0, "method", "2/h")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "training.batch_sise=1"], "Did you mean 'batch_size'"),
        (["--set", "training"], "--set takes KEY=VALUE"),
        (["--set", "name.first=x"], "cannot be set"),
        (["--seeds", "many"], "--seeds takes a number"),
        (["--methods", "lora,,full"], "--methods takes names"),
        (["--methods", "lorra"], "Did you mean 'lora'"),
        (["--budget", "much"], "is not a length of time"),
    ],
)
def test_a_wrong_option_is_told_as_a_wrong_file_is(
    command: Any, study_file: Any, words: list[str], sentence: str
) -> None:
    for verb in ("check", "run"):
        code, out, error = command(verb, study_file(), *words)
        assert code == 2, out
        assert sentence in error


def test_init_says_what_it_did_to_programs(command: Any, reviews: Path, tmp_path: Path) -> None:
    code, out, _ = command("init", reviews, "--out", tmp_path / "a.yaml", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "classification"
    assert found["task"]["label"] == "mood"


def test_the_next_command_can_be_typed_as_it_is_printed(command: Any, reviews: Path, tmp_path: Path) -> None:
    out = command("init", reviews, "--backbone", "tiny-encoder", "--out", tmp_path / "my study.yaml")[1]
    words = shlex.split(out.partition("Next: ")[2])
    assert words == ["dollartune", "check", str(tmp_path / "my study.yaml")]


@pytest.mark.parametrize(
    ("given", "near"), [("a100", "a100-80gb"), ("lor", "lora"), ("lorra", "lora"), ("sceds", "seeds"), ("x", "")]
)
def test_what_was_begun_is_nearer_than_what_is_spelled_alike(given: str, near: str) -> None:
    from dollartune.errors import nearest

    names = ["a10", "a100-80gb", "lora", "seeds", "scales"]
    assert nearest(given, names) == (f" Did you mean {near!r}?" if near else "")


def test_help_has_no_types_of_python(command: Any) -> None:
    for verb in ("run", "plan", "tune", "merge", "predict"):
        out = command(verb, "-h")[1]
        assert "{" not in out.splitlines()[0]
        assert "list[" not in out
        assert "......" not in out
    assert "90" not in command("methods", "show", "lorra")[2]
    assert "pissa" not in command("methods", "show", "lorra")[2], "aliases are found and not listed"


def test_every_setting_of_a_method_has_its_meaning(command: Any) -> None:
    found = json.loads(command("methods", "show", "lora", "--json")[1])
    assert all(one["meaning"] for one in found["settings"])
    assert "LogUniform" not in command("methods", "show", "lora")[1]


@pytest.mark.parametrize("words", [
    ["tune", "reviews.csv", "--budget", "$1"], ["tune", "reviews.csv", "--budget", "lots"], ["tune", "nowhere.csv"],
    ["tune", "REVIEWS", "--label", "mod", "--budget", "1 min"],
])  # fmt: skip
def test_tune_refuses_what_cannot_work_before_the_libraries_are_loaded(words: list[str], reviews: Path) -> None:
    assert alone(*(reviews if word == "REVIEWS" else word for word in words)) == "CODE 2 TORCH False"


def test_usage_is_written_as_other_programs_write_it(command: Any) -> None:
    """Also where it stands above an error."""
    for verb in ("doubts", "predict", "serve", "count", "tune", "run"):
        for words in ((verb, "--nonsense"), (verb, "-h")):
            told = command(*words)
            usage = next(line for line in (told[1] + told[2]).splitlines() if line.startswith("Usage:"))
            words_behind = usage.split("[OPTIONS]")[1].replace("STUDY.yaml", "STUDY")
            assert words_behind == words_behind.upper()
            assert not set("{}<>") & set(words_behind)


@pytest.mark.parametrize("beyond", ["", "inner", "inner/more"])
def test_a_file_in_the_way_of_a_folder_is_named(command: Any, study_file: Any, tmp_path: Path, beyond: str) -> None:
    path, taken = study_file(), tmp_path / "taken"
    taken.write_text("a file")
    code, _, error = command("run", path, "--output", taken / beyond)
    assert code == 2
    assert f"'{taken}' cannot be a folder: there is a file of that name" in error
