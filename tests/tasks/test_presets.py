"""Every preset on the real data: counts as the data's README says, no leak between splits, prompts that render."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from dollartune.errors import UserError
from dollartune.metrics import get
from dollartune.tasks import describe_task, load_task, task_names
from dollartune.tasks.columns import Columns
from dollartune.tasks.examples import ties
from dollartune.tasks.presets.chart2text_statista import linear_table
from dollartune.tasks.registry import presets

PRESETS = sorted({preset.name for preset in presets().values()})
SOURCES = {"boolq", "ag_news", "cola", "e2e_nlg", "samsum", "imdb", "financial_phrasebank", "chart2text_statista"}
KNOWN_OVERLAPS = {("chart2text_statista", "train", "validation"): 1, ("mnli", "validation", "test"): 16}
"""Inputs or groups that the data itself has in two splits; the presets' `leaks` tell of them."""
MORE = {"pneumonia", "chest_xray_nih", "sst2", "rte", "mnli", "multi30k", "mts_dialog", "boolq_question_only"}


def test_the_presets_of_the_sources_are_there() -> None:
    assert set(task_names()) >= SOURCES | MORE


@pytest.mark.parametrize("name", PRESETS)
def test_preset_describes_itself_without_data(name: str) -> None:
    told = describe_task(name)
    preset = presets()[name]
    for key in ("description", "source", "leaks"):
        assert told[key].strip(), key
    assert len(set(preset.label_words.values())) == len(preset.label_words)
    for metric in (preset.metric, *preset.metrics):
        assert get(metric).kind == preset.kind
    if preset.modality == "text":
        fields = dict.fromkeys(preset.columns, "VALUE")
        task = preset.task()
        assert task.template is not None
        assert len(task.extra_templates) >= 2
        for template in (task.template, *task.extra_templates):
            assert "VALUE" in template(fields)
            assert set(template.columns) <= set(preset.columns)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_on_real_data(shared: Path, name: str) -> None:
    preset = presets()[name]
    folder = preset.local_folder(shared / "data")
    assert folder is not None
    task = load_task(name, shared / "data")
    rows = task.load()
    table = {
        split: int(count)
        for split, count in re.findall(
            r"^\| (train|validation|test) \| (\d+)", (folder / "README.md").read_text(), re.M
        )
    }
    assert {split: len(found) for split, found in rows.items()} == table
    columns = Columns(preset.columns, image="image" if preset.modality == "image" else None, group=preset.group)
    seen = {split: {key for example in found for key in ties(columns, example)} for split, found in rows.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert len(seen[one] & seen[other]) == KNOWN_OVERLAPS.get((name, one, other), 0)
    for split, found in rows.items():
        assert [example.id for example in found] == [f"{split}/{number}" for number in range(len(found))]
        if task.kind == "classification":
            assert {example.label for example in found} == set(task.labels)
        for example in found:
            assert task.answer(example).strip()
            if task.kind == "generation":
                assert example.target in example.references
            if task.modality == "text":
                for template in (task.template, *task.extra_templates):
                    assert len(task.prompt(example, template)) > len(str(example.fields[preset.columns[0]]))


def test_boolq_asks_as_reference_000(shared: Path) -> None:
    task = load_task("boolq", shared / "data")
    example = task.load()["train"][0]
    assert task.prompt(example) == (
        "Using information in the passage, answer the following question: is there such a thing as green onyx? "
        f"### Passage: {example.fields['passage']} ### Answer:"
    )
    assert task.answer(example) == "Yes"
    majority = Counter(example.label for example in task.load()["test"])["yes"] / 900
    assert majority == pytest.approx(0.61)


def test_tables_are_written_as_in_reference_003() -> None:
    table = 'Country,"Expenditure, in dollars"\nRussia,12\nSweden,"1,300"'
    assert (
        linear_table(table)
        == "0 Country: Russia, Expenditure, in dollars: 12 1 Country: Sweden, Expenditure, in dollars: 1,300"
    )


def test_xray_is_a_picture(shared: Path) -> None:
    image = load_task("pneumonia_mnist", shared / "data").load()["test"][0].fields["image"]()
    assert (image.size, image.mode) == ((28, 28), "RGB")


def test_e2e_has_all_references(shared: Path) -> None:
    rows = load_task("e2e_nlg", shared / "data").load()
    assert max(len(example.references) for example in rows["validation"]) > 5
    assert all(len(example.references) == 1 for example in rows["train"])


def test_rating_of_a_review_cannot_be_shown(shared: Path) -> None:
    task = load_task("imdb", shared / "data")
    assert set(task.load()["train"][0].fields) == {"text"}
    with pytest.raises(UserError, match="uses column 'rating'"):
        load_task({"preset": "imdb", "prompt": "{rating}"}, shared / "data")


def test_changes_to_a_preset(shared: Path) -> None:
    task = load_task(
        {"preset": "boolq", "prompt": "{question}?", "label_words": {"yes": "ja", "no": "nein"}, "metric": "matthews"},
        shared / "data",
    )
    example = task.load()["train"][0]
    assert (task.prompt(example), task.answer(example), task.metric) == (
        "is there such a thing as green onyx?",
        "ja",
        "matthews",
    )
    assert task.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bolq", "unknown task 'bolq'. Did you mean 'boolq'"),
        ({"preset": "agnews"}, "unknown preset 'agnews'. Did you mean 'ag_news'"),
        ({"preset": "boolq", "label_words": {"yess": "ja"}}, "unknown label of boolq 'yess'. Did you mean 'yes'"),
        ({"preset": "boolq", "prompt": "{quesion}"}, "column 'quesion'.*Did you mean 'question'"),
        ({"preset": "boolq", "metric": "rouge1"}, "measure 'rouge1' is for generation"),
        ({"preset": "boolq", "label": "x"}, "'preset' cannot be combined with 'label'"),
        (3, "a task is a name, a file or a mapping; got int"),
    ],
)
def test_mistakes(spec: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(spec)


def test_a_root_without_the_preset_or_with_half_of_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data of chart2text_statista is not on the hub"):
        load_task("chart2text_statista", tmp_path).load()
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "test.csv").write_text("text,label\na,positive\n")
    with pytest.raises(UserError, match="has no train file"):
        load_task("sst2", tmp_path).load()
    (tmp_path / "sst2" / "train.csv").write_text("text,label\na,postive\n")
    with pytest.raises(UserError, match=r"train.csv, line 2: unknown label 'postive'. Did you mean 'positive'"):
        load_task("sst2", tmp_path).load()
