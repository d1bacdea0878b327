"""What `tune` says and sets: methods by what rows are, the user's measure, and a table of what was tried with what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune import metrics
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.study.api import Study
from dollartune.trials.record import RECORD_VERSION, TrialRecord, record_of
from dollartune.trials.store import Store
from dollartune.tuned import tuning_settings
from dollartune.tuning import hand_over, refuse_other_work, standings, tuning_study


def settings_for(tmp_path: Path, backbone: str = "tiny-encoder", task: str = "demo_library", **given: Any) -> Any:
    return tuning_study(backbone, task, [], "60 s", tmp_path, **given)[0]


def test_the_first_methods_follow_what_rows_are(tmp_path: Path) -> None:
    assert settings_for(tmp_path)["methods"][0] == "tfidf_probe"
    assert (
        settings_for(tmp_path, backbone="tiny-vit", task="demo_digits")["methods"][0] == "linear_probe(pooling='deep')"
    )


def test_the_users_measure_is_the_tasks_and_rare_classes_count_where_it_counts_them(tmp_path: Path) -> None:
    plain = settings_for(tmp_path, metric="accuracy")
    assert plain["task"] == {"preset": "demo_library", "metric": "accuracy"}
    assert "class_weights" not in plain["training"]
    assert "class_offsets" not in plain["training"]
    for metric in ("macro_f1", "matthews", "recall:history"):
        found = settings_for(tmp_path, metric=metric)
        assert found["training"]["class_weights"] == "balanced"
        assert found["training"]["class_offsets"] == "validation"
        assert found["methods"][0] == {"tfidf_probe": {"class_weight": "balanced"}}
    # a decoder writes its answers, which have no weights
    assert "class_weights" not in settings_for(tmp_path, backbone="tiny-decoder", metric="macro_f1")["training"]
    with pytest.raises(UserError, match="unknown measure"):
        settings_for(tmp_path, metric="makro_f1")


@pytest.mark.parametrize("method", ["majority", "tfidf(pairs=False)", {"majority": {}}])
def test_methods_that_leave_no_adapter_are_refused_before_money_is_spent(tmp_path: Path, method: Any) -> None:
    with pytest.raises(UserError, match="trains nothing, so that there would be no adapter") as refused:
        tuning_study("tiny-encoder", "demo_library", [method], "60 s", tmp_path)
    assert "--method linear_probe" in str(refused.value.hint)
    settings, _ = tuning_study("tiny-encoder", "demo_library", [method, "linear_probe"], "60 s", tmp_path)
    assert settings["methods"] == [method, "linear_probe"]


def test_recall_of_a_class_is_the_share_of_its_rows_that_is_found() -> None:
    found = metrics.get("recall:b").score(["a", "b", "b", None], ["a", "b", "a", "b"])
    assert found == pytest.approx(0.5)
    with pytest.raises(UserError, match="no label is called"):
        metrics.get("recall:c").score(["a"], ["a"])


def record(name: str, label: str, score: float, seconds: float, **more: Any) -> TrialRecord:
    values = {
        "version": RECORD_VERSION, "id": name, "metric": "accuracy", "status": "tried", "cost": {"seconds": seconds},
        "trial": {"backbone": "b", "group": label, "label": label, "task": "t", "seed": 0},
        "validation": {"score": score, "examples": 200, "standard_error": 0.03}, **more,
    }  # fmt: skip
    return record_of(values)


class Records:
    """A store of a few records."""

    def __init__(self, *records: TrialRecord) -> None:
        self.kept = records

    def records(self) -> tuple[TrialRecord, ...]:
        return self.kept


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (0.85, "tfidf does as well here for 1/50 of the money."),
        (0.81, "tfidf is 0.030 lower on the same 200 validation rows, and took 2 % of the money."),
        (0.70, None),
    ],
)
def test_what_does_as_well_for_less_money_is_said(score: float, sentence: str | None) -> None:
    ours = record("a", "full", 0.84, 50.0, status="done", test={"score": 0.83, "examples": 400})
    lines = standings(Records(record("b", "tfidf", score, 1.0), ours), ours)  # type: ignore[arg-type]
    (line,) = [one for one in lines if one.startswith("full ")]
    assert "0.840 ± 0.030" in line
    assert "0.830 (400)" in line
    assert line.endswith("handed over")
    assert (lines[-1] == sentence) if sentence else lines[-1].startswith("tfidf ")


def test_an_averaged_adapter_costs_what_both_its_runs_took() -> None:
    def run(name: str, label: str, seconds: float, dollars: float, **more: Any) -> TrialRecord:
        trial = {"backbone": "b", "group": "full", "label": label, "task": "t", "seed": 0, **more}
        cost = {"seconds": seconds, "dollars": dollars, "price_per_hour": 3600.0}
        return record(name, label, 0.84, seconds, cost=cost, trial=trial)

    ours = run("b", "full, average of two", 20.0, 20.0, averaged_with="a")
    probe = run("c", "linear_probe", 10.0, 10.0)
    lines = standings(Records(run("a", "full", 30.0, 30.0), ours, probe), ours)  # type: ignore[arg-type]
    assert {line.split("  ")[0]: line.split("$")[1].split()[0] for line in lines[1:4]} == {
        "full": "30.00",
        "full, average of two": "50.00",
        "linear_probe": "10.00",
    }
    assert lines[-1] == "linear_probe does as well here for 1/5 of the money."


def test_a_setting_is_listed_by_its_longest_run_and_a_short_one_says_its_steps() -> None:
    def trained(name: str, label: str, score: float, steps: int, **more: Any) -> TrialRecord:
        training = {"steps": steps, "best_step": steps, "stopped": "finished", "seconds": 1.0}
        trial = {"backbone": "b", "group": label, "label": label, "task": "t", "seed": 0, "steps": steps}
        return record(name, label, score, 9.0, **{"training": training, "trial": trial, **more})

    ours = trained("a", "full", 0.84, 300, status="done", test={"score": 0.83, "examples": 400})
    others = [trained("b", "full", 0.9, 100), trained("c", "lora", 0.6, 100), record("d", "linear_probe", 0.7, 1.0)]
    labels = [line[:15].strip() for line in standings(Records(ours, *others), ours)[1:]]  # type: ignore[arg-type]
    assert labels[:3] == ["full", "linear_probe", "lora, 100 steps"]
    seeds = [trained("e", "ia3", 0.7, 300), trained("f", "ia3", 0.8, 300)]
    lines = standings(Records(ours, *seeds), ours)  # type: ignore[arg-type]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["full", "ia3, 2 runs"]
    assert "0.750 ± 0.030" in lines[2]
    assert "9.0 s" in lines[2], "of one run: more seeds make no setting dearer"


@pytest.mark.parametrize("score", [0.85, 0.81])
def test_scores_on_other_rows_are_not_held_against_each_other(score: float) -> None:
    ours = record("a", "full", 0.84, 50.0, status="done", test={"score": 0.83, "examples": 400})
    few = record("b", "tfidf", score, 1.0, validation={"score": score, "examples": 100, "standard_error": 0.03})
    lines = standings(Records(few, ours), ours)  # type: ignore[arg-type]
    assert not any("money" in line for line in lines)


def test_features_that_were_there_already_make_nothing_cheap() -> None:
    """Solved in a second on features that took 39: no fiftieth of the money of 50 seconds."""
    ours = record("a", "full", 0.84, 50.0, status="done", test={"score": 0.83, "examples": 400})
    cost = {"seconds": 1.0, "features_seconds": 39.0}
    lines = standings(Records(record("b", "linear_probe", 0.85, 1.0, cost=cost), ours), ours)  # type: ignore[arg-type]
    assert not any("of the money" in line for line in lines)
    assert any(line.startswith("linear_probe ") and "40 s" in line for line in lines)


# One folder, one adapter


@pytest.fixture
def begun(study_of: Any, reviews: Path, tmp_path: Path) -> Study:
    """A study of a file of its own, which has an adapter."""
    data = tmp_path / "moods.csv"
    data.write_bytes(reviews.read_bytes())
    study = Study(study_of(methods=["bitfit"], task={"data": str(data), "prompt": "{text}. Mood:", "label": "mood"}))
    study.run(display=Display())
    return study


def test_a_folder_that_was_begun_for_another_adapter_is_refused(begun: Study, tmp_path: Path) -> None:
    store, settings = begun.store, begun.settings
    refuse_other_work(store, settings)
    refuse_other_work(store, settings.model_copy(update={"methods": ["lora"], "budget": None, "seeds": (0, 1)}))
    other = {**settings.tasks[0], "data": str(tmp_path / "others.csv")}  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"task\.data .*moods\.csv and .*others\.csv") as refused:
        refuse_other_work(store, settings.model_copy(update={"tasks": (other,)}))
    assert "--fresh" in str(refused.value.hint)
    backbones = (settings.backbones[0].model_copy(update={"name": "tiny-decoder"}),)
    with pytest.raises(UserError, match=r"backbone\.name .* and tiny-decoder"):
        refuse_other_work(store, settings.model_copy(update={"backbones": backbones}))
    with (tmp_path / "moods.csv").open("a") as file:
        file.write("the tea was fine today,good\n")
    more = {**settings.tasks[0], "label_words": {"good": "good"}}  # type: ignore[dict-item]  # guessed of the new rows
    for tasks in (settings.tasks, (more,)):
        with pytest.raises(UserError, match=r"on other rows: .*moods\.csv has changed since") as refused:
            refuse_other_work(store, settings.model_copy(update={"tasks": tasks}))
        assert "--begin-with" not in str(refused.value.hint), "there is none"
    hand_over(store, store.root.parent / "adapter")
    with pytest.raises(UserError) as refused:
        refuse_other_work(store, settings)
    assert f"--begin-with {store.root.parent / 'adapter'}" in str(refused.value.hint)
    refuse_other_work(Store(tmp_path / "nowhere"), settings)


def test_a_backbone_is_the_same_by_each_of_its_names(
    local_backbone: Any, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = Path(local_backbone("llama")).resolve()
    Path("model").symlink_to(folder)

    def asked(backbone: str | None) -> dict[str, Any]:
        return tuning_settings(str(reviews), backbone, "60 s", Path("tuned"), {"label": "mood"})[0]

    first = asked("model")
    assert first["backbone"] == str(folder), "as it is found from other folders"
    for settings in (first, {**first, "backbone": "model"}):  # as it was written down once
        study = Study(settings)
        study.store.create(study.settings.model_dump_json(exclude={"output", "engine"}), [])
        for name in ("model", "./model", "model/", "~/model", str(folder), None):
            again = Study(asked(name))
            assert again.settings.backbones == study.settings.backbones, "whose records are found"
            refuse_other_work(again.store, again.settings)


def test_an_adapter_of_a_method_that_was_not_asked_for_is_not_handed_over(begun: Study, tmp_path: Path) -> None:
    assert hand_over(begun.store, tmp_path / "adapter") is not None
    asked = begun.settings.model_copy(update={"methods": ["lora"]})
    begun.store.create(asked.model_dump_json(exclude={"output", "engine"}), [])
    assert hand_over(begun.store, tmp_path / "adapter") is None


def test_a_link_to_a_folder_stays_one(begun: Study, tmp_path: Path) -> None:
    (tmp_path / "deployed").mkdir()
    (tmp_path / "adapter").symlink_to(tmp_path / "deployed")
    for _ in range(2):
        hand_over(begun.store, tmp_path / "adapter")
    assert (tmp_path / "adapter").is_symlink()
    assert (tmp_path / "deployed" / "adapter.json").is_file()


def test_the_same_command_with_more_money_keeps_its_backbone(begun: Study, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    begun.store.root.rename(out.with_name("study"))
    out.mkdir()
    out.with_name("study").rename(out / "study")
    settings, notes = tuning_settings(str(tmp_path / "moods.csv"), None, "1 h", out, {"label": "mood"})
    assert settings["backbone"] == begun.settings.backbones[0].name
    assert "with which" in notes[0]
