"""Study files: every kind of mistake gets one sentence with the nearest valid name."""

from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.study_file import load_study, read_assignments, read_scales, read_yaml

GOOD: dict[str, Any] = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"]}


def problem(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_study({**GOOD, **changes})
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "given", "meant"),
    [
        ({"metods": ["lora"]}, "metods", "methods"),
        ({"budget": {"dolars": 1}}, "budget.dolars", "dollars"),
        ({"training": {"epoch": 3}}, "training.epoch", "epochs"),
        ({"evaluation": {"row": 3}}, "evaluation.row", "rows"),
        ({"ablations": {"layer": ["first 50%"]}}, "ablations.layer", "layers"),
        ({"backbone": {"name": "a", "quantise": "nf4"}}, "backbone.quantise", "quantize"),
        ({"backbone": ["a", {"name": "b", "objectiv": "auto"}]}, "backbone.1.objectiv", "objective"),
    ],
)
def test_a_misspelt_key_at_every_level(changes: dict[str, Any], given: str, meant: str) -> None:
    message = problem(changes)
    assert message.startswith(f"the study: unknown key {given!r}. Did you mean {meant!r}? Known here: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"epochs": 3}, "unknown key 'epochs'. It stands under `training:`."),
        ({"evaluation": {"epochs": 3}}, "unknown key 'evaluation.epochs'. It stands under `training:`."),
        (
            {"training": {"lr": 1e-4}},
            "'training.lr'. It is a setting of methods: `- NAME: {lr: ...}` under `methods:`.",
        ),
        ({"training": {"seeds": 3}}, "'training.seeds'. It stands at the top of the file."),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_own(changes: dict[str, Any], meant: str) -> None:
    assert meant in problem(changes)


@pytest.mark.parametrize("name", ["", ".", "..", "...", " ", "/a", "a/", "../b", "a/../..", "a\\..\\b", "x" * 201])
def test_a_name_that_is_no_folder_of_its_own(name: str) -> None:
    assert "is no name of a folder" in problem({"name": name})
    assert load_study({**GOOD, "name": "this/v1.2 (rest)"}).name == "this/v1.2 (rest)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": "three"}, "seeds should be a whole number or a list of whole numbers; got 'three'."),
        ({"scales": [1.5]}, "scales: 1.5 is not a valid scale."),
        ({"methods": "lora"}, "methods should be a list; got 'lora'."),
        ({"methods": [1]}, "methods.0 should be a text or a mapping or a list; got 1."),
        ({"methods": []}, "methods should be a list with at least one entry; got []."),
        ({"training": {"clip": "much"}}, "training.clip should be a number; got 'much'."),
        ({"training": {"warmup": 2.0}}, "training.warmup should be less than 1; got 2.0."),
        ({"budget": 3}, "budget: '3' has no unit: dollars, or how much time?"),
        ({"budget": {"memory": "2"}}, "the study: budget.memory: '2' is no size of memory: write '2 GiB' or '800 MB'."),
        ({"budget": {"minutes": "5"}}, "time is one of seconds, minutes and hours, as a number; got minutes: '5'."),
        (
            {"methods": {"lora": {"rank": 8}}},
            "should be a list; got {'lora': {'rank': 8}}. Write `methods: [{lora: {rank: 8}}]`.",
        ),
        ({"training": {"epochs": "3"}}, "the study: training.epochs should be a whole number"),
        ({"training": {"clip": "1e-1"}}, "got '1e-1'. Write it without quotes."),
        ({"name": True}, "name should be a text; got True. YAML reads yes, no, on and off as true and false"),
        ({"methods": ["lora", []]}, "methods: a combination is empty"),
        ({"task": ""}, "task: the name is empty"),
        ({"tasks": ["rte", "rte"]}, "tasks: rte appears twice."),
        ({"budget": {"per": "methods"}}, "got 'methods'. Did you mean 'method'?"),
        ({"keep_adapters": "bets"}, "got 'bets'. Did you mean 'best'?"),
        ({"backbone": None}, "backbone should be a text or a mapping or a list; got None."),
        ({"evaluation": {"free_generation": "yes"}}, "evaluation.free_generation should be true or false; got 'yes'."),
        ({1: 2}, "1 should be a key in letters; got 1."),
    ],
)
def test_a_value_of_the_wrong_kind(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in problem(changes)


@pytest.mark.parametrize(
    ("missing", "sentence"), [("backbone", "'backbone' is missing"), ("methods", "'methods' is mis")]
)
def test_a_missing_key(missing: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_study({key: value for key, value in GOOD.items() if key != missing})


def test_a_study_without_a_task() -> None:
    with pytest.raises(UserError, match="there is no `task:`"):
        load_study({"backbone": "a", "methods": ["lora"]})


def test_several_mistakes_are_told_at_once() -> None:
    message = problem({"sceds": 1, "training": {"epochs": "a"}})
    assert "'sceds'" in message
    assert "training.epochs" in message
    assert len(message.splitlines()) == 2


def test_what_is_no_number_is_none_without_quotes_either() -> None:
    assert problem({"training": {"clip": "1.2.3"}}).endswith("should be a number; got '1.2.3'.")


def test_yaml_numbers_are_numbers() -> None:
    found = read_yaml("a: 1e-4\nb: 2E3\nc: 1.5e-2\nd: 3\ne: 1e4x\nf: -1e-3\n", "file")
    assert found == {"a": 1e-4, "b": 2000.0, "c": 0.015, "d": 3, "e": "1e4x", "f": -1e-3}
    assert isinstance(found["d"], int)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "file, line 3: the key 'a' appears twice (first in line 1)."),
        ("a:\n  b: 1\n  b: 2\n", "file, line 3: the key 'b' appears twice (first in line 2)."),
        ("a: [1, 2\nb: 3\n", "file, line 2: not valid YAML"),
        ("- a\n- b\n", "must hold `key: value` lines; it holds a list"),
        ("", "must hold `key: value` lines; it is empty"),
        ("? [a, b]\n: c\n", "a key must be one word"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        (
            "a: 1\nb: 2026-13-45\n",
            "file, line 2: not valid YAML: '2026-13-45' is read as a date or a number and is none",
        ),
        ("a: 0x_\n", "file, line 1: not valid YAML: '0x_' is read"),
        ("a:\n\tb: 1\n", "; indent by spaces, not by tabs."),
        ("a: \x00\n", "it holds the character #x0000, which no text file has."),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_bad_yaml(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(text, "file")
    assert sentence in caught.value.message


def test_a_merge_key_is_no_repeat() -> None:
    assert read_yaml("x: &x {a: 1}\ny: {<<: *x, b: 2}\n", "file")["y"] == {"a": 1, "b": 2}


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_gives_its_name_and_paths_count_from_it(tmp_path: Path) -> None:
    for name in ("rows.csv", "more.csv", "held.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    study = write(
        tmp_path,
        "backbone: ./model\ntask: rows.csv\ntasks:\n- {data: more.csv, test: held.csv}\n- boolq\n"
        "methods: [lora]\ndata_root: data\nevaluation: {general_text: text.txt}\nbegin_with: ~/adapter\n",
    )
    settings = load_study(study)
    assert settings.name == "mine"
    assert settings.backbones[0].name == str(tmp_path / "model")
    assert settings.data_root == str(tmp_path / "data")
    assert settings.evaluation.general_text == str(tmp_path / "text.txt")
    assert settings.begin_with == str(Path("~/adapter").expanduser().resolve())
    full = {"data": str(tmp_path / "more.csv"), "test": str(tmp_path / "held.csv")}
    assert settings.tasks == (str(tmp_path / "rows.csv"), full, "boolq")


def test_a_tilde_is_the_users_home_in_every_folder_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    keys = ("data_root", "begin_with", "output")
    paths = {key: f"~/{key}" for key in keys}
    text = "backbone: tiny-decoder\ntask: boolq\nmethods: [lora]\nevaluation: {general_text: ~/text}\n"
    file = write(tmp_path, text + "".join(f"{key}: {path}\n" for key, path in paths.items()))
    for settings in (load_study(file), load_study({**GOOD, **paths, "evaluation": {"general_text": "~/text"}})):
        assert [getattr(settings, key) for key in keys] == [f"/home/user/{key}" for key in keys]
        assert settings.evaluation.general_text == "/home/user/text"


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "a: 1", "study.yaml")
    with pytest.raises(UserError, match=r"there is no study file .*Did you mean 'study.yaml'"):
        load_study(tmp_path / "studdy.yaml")


def test_a_folder_names_the_study_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; a study file") as caught:
        load_study(tmp_path)
    assert caught.value.hint == f"A study file for data in it: dollartune init {tmp_path}"
    write(tmp_path, "a: 1", "moods.yaml")
    with pytest.raises(UserError, match=r"In it: moods\.yaml"):
        load_study(tmp_path)
    (tmp_path / "trials").mkdir()
    with pytest.raises(UserError, match="is the folder of a study that has run") as caught:
        load_study(tmp_path)
    assert caught.value.hint == f"What it found: dollartune results {tmp_path}"


def test_what_is_said_on_the_command_line() -> None:
    assert read_assignments(["a=1e-4", "b.c=[x, 2]"]) == {"a": 1e-4, "b.c": ["x", 2]}
    for texts, sentence in (
        (["a=2026-13-45"], "--set a: '2026-13-45' is not a value in YAML: '2026-13-45' is read as a date"),
        (["a={b: 1, b: 2}"], "--set a: line 1: the key 'b' appears twice"),
        (["a=1", "a=2"], "--set gives a twice: 1 and '2'."),
    ):
        with pytest.raises(UserError) as caught:
            read_assignments(texts)
        assert sentence in caught.value.message
    assert read_scales("100, 1000,all,²") == [100, 1000, "all", "²"]
    with pytest.raises(UserError, match="write 1000 for 1,000"):
        read_scales("1,000")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        load_study(tmp_path / "s.yaml")


def test_overrides_win_and_none_changes_nothing() -> None:
    settings = load_study({**GOOD, "output": "there"}, output="here", data_root=None)
    assert (settings.output, settings.data_root) == ("here", None)


def test_a_data_file_given_as_a_study_is_told_so(tmp_path: Path) -> None:
    data = tmp_path / "tickets.csv"
    data.write_text('id,text\n1,"Order 1: about the login"\n')
    with pytest.raises(UserError, match="is no study file") as refused:
        load_study(data)
    assert f"dollartune init {data}" in str(refused.value)
