"""Evaluation: scores, breakdown and predictions of label scoring and of free generation; calibration; mixtures."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone
from dollartune.errors import UserError
from dollartune.evaluate import evaluation as module
from dollartune.evaluate.evaluation import Evaluator, score_all
from dollartune.methods.registry import build_method
from dollartune.tasks.base import Task
from dollartune.tasks.registry import load_task
from dollartune.train.encoding import Encoder


@pytest.fixture
def attached(backbone: Backbone) -> Iterator[Attached]:
    found = Attached(backbone.model, backbone.anatomy)
    yield found
    found.detach()


def evaluator(backbone: Backbone, attached: Attached, task: Task, free: bool = False) -> Evaluator:
    return Evaluator(backbone, attached, task, Encoder(backbone), task.splits(20).train, free, 4)


def scores_of(labels: list[int], sure: float = 2.0) -> torch.Tensor:
    """log p that choose these labels."""
    found = torch.zeros(len(labels), 2)
    found[torch.arange(len(labels)), torch.tensor(labels)] = sure
    return found.log_softmax(-1)


def test_predictions_scores_and_breakdown(
    backbone: Backbone, attached: Attached, moods: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = moods.splits(1).test[:4]
    truth = [moods.labels.index(str(row.label)) for row in rows]
    chosen = [truth[0], truth[1], truth[2], 1 - truth[3]]
    monkeypatch.setattr(module, "label_log_probabilities", lambda *_: scores_of(chosen))
    words = [moods.label_words[str(rows[0].label)], "no idea", "Good!", ""]
    monkeypatch.setattr(module, "generate_texts", lambda *_: words)
    found = evaluator(backbone, attached, moods, free=True).evaluate(None, [], rows)
    assert found.score == found.scores["accuracy"] == 0.75
    assert {"balanced_accuracy", "f1", "matthews"} <= found.scores.keys()
    assert found.breakdown == {
        **{label: chosen.count(index) for index, label in enumerate(moods.labels)},
        **{name: n for name, n in found.breakdown.items() if name not in moods.labels},
    }
    assert sum(found.breakdown.values()) == 4
    assert found.generation_breakdown["other"] == 2
    assert sum(found.generation_breakdown.values()) == 4
    first, last = found.predictions[0], found.predictions[3]
    assert (first.example_id, first.predicted, first.correct) == (rows[0].id, rows[0].label, True)
    assert sum((first.probabilities or {}).values()) == pytest.approx(1)
    assert first.probabilities[str(rows[0].label)] == pytest.approx(math.exp(2) / (math.exp(2) + 1))  # type: ignore[index]
    assert last.correct is False
    assert (first.generated_label, last.generated_label) == (rows[0].label, None)
    assert found.examples == 4
    assert found.prompt_tokens > 5


def test_scores_that_are_no_numbers_are_an_error(
    backbone: Backbone, attached: Attached, moods: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = scores_of([0, 1, 0])
    broken[1] = math.nan
    monkeypatch.setattr(module, "label_log_probabilities", lambda *_: broken)
    with pytest.raises(FloatingPointError, match="1 of 3 rows"):
        evaluator(backbone, attached, moods).evaluate(None, [], moods.splits(1).test[:3])


def test_calibration_takes_away_what_the_prompt_makes_likely(
    backbone: Backbone, attached: Attached, moods: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = moods.splits(1).test[:4]
    plain, prior = torch.tensor([[0.7, 0.3]] * 4).log(), torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]).log()
    asked: list[int] = []

    def scored(_: Any, __: Any, ___: Any, encoded: list[Any], *____: Any) -> torch.Tensor:
        asked.append(len(encoded))
        return plain if len(encoded) == 4 else prior

    monkeypatch.setattr(module, "label_log_probabilities", scored)
    found = evaluator(backbone, attached, moods).evaluate(None, [build_method("zero_shot(calibrate=True)")], rows)
    assert asked == [4, 3]
    expected = (0.7 / 0.8) / (0.7 / 0.8 + 0.3 / 0.2)
    assert (found.predictions[0].probabilities or {})[moods.labels[0]] == pytest.approx(expected)
    assert found.predictions[0].predicted == moods.labels[1]


def test_calibration_by_training_rows_asks_none_of_the_rows_that_are_scored(
    backbone: Backbone, attached: Attached, moods: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, train = moods.splits(1).test[:4], moods.splits(40).train
    asked: list[list[str]] = []

    def scored(_: Any, __: Any, ___: Any, encoded: list[Any], *____: Any) -> torch.Tensor:
        asked.append([row.example_id for row in encoded])
        several = [[0.7, 0.3]] * 4 if len(encoded) == 4 else [[0.8, 0.2], [0.5, 0.5]] * (len(encoded) // 2)
        return torch.tensor(several).log()

    monkeypatch.setattr(module, "label_log_probabilities", scored)
    by_rows = build_method("zero_shot(calibrate='training_rows')")
    judge = Evaluator(backbone, attached, moods, Encoder(backbone), train, free_generation=False)
    found = judge.evaluate(None, [by_rows], rows)
    assert asked == [[row.id for row in rows], [row.id for row in train]]
    first, second = 0.7 / math.sqrt(0.8 * 0.5), 0.3 / math.sqrt(0.2 * 0.5)
    expected = first / (first + second)
    assert (found.predictions[0].probabilities or {})[moods.labels[0]] == pytest.approx(expected)
    judge.pool = ()
    with pytest.raises(UserError, match="needs training rows"):
        judge.evaluate(None, [by_rows], rows)


@pytest.mark.parametrize("calibrate", ["True", "'training_rows'"])
def test_calibration_reads_the_solved_examples_of_the_questions_and_no_row_its_answer(
    backbone: Backbone, attached: Attached, moods: Task, calibrate: str
) -> None:
    train = moods.splits(40).train
    method = build_method(f"few_shot(examples=3, choose='random', calibrate={calibrate})")
    judge = Evaluator(backbone, attached, moods, Encoder(backbone), train, free_generation=False)
    assert method.prompting is not None
    read: list[list[str]] = []
    encode = judge.encode

    def noted(*given: Any) -> Any:
        found = encode(*given)
        read.append([backbone.processor.decode(row.prompt, skip_special_tokens=True) for row in found])
        return found

    judge.encode = noted  # type: ignore[method-assign]
    test = moods.splits(1).test[:1]
    judge.evaluate(None, [method], test, seed=3)
    (question,), asked = read
    solved = question.removesuffix(moods.prompt(test[0]))
    assert solved.count("\n\n") >= 3
    # all but the three that are solved examples themselves, each of which goes without its own
    assert sum(text.startswith(solved) for text in asked) >= len(asked) - 3
    for text, example in zip(asked, train if calibrate != "True" else (), strict=False):
        assert f"{moods.prompt(example)} {moods.answer(example)}" not in text


def test_other_wordings(backbone: Backbone, attached: Attached, reviews: Any) -> None:
    spec = {"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood", "extra_prompts": ["How is {text}?"]}
    task = load_task(spec)
    found = evaluator(backbone, attached, task)
    rows = task.splits(1).test[:2]
    method = build_method("zero_shot(template=1)").prompting
    text = backbone.processor.decode(found.encode(rows, method, 0)[0].prompt, skip_special_tokens=True)
    assert text == f"How is {rows[0].fields['text']}?"
    with pytest.raises(UserError, match="it has 0 to 1"):
        found.encode(rows, build_method("zero_shot(template=2)").prompting, 0)


def test_few_shot_prompts_cost_more_tokens(backbone: Backbone, attached: Attached, moods: Task) -> None:
    rows = moods.splits(1).test[:3]
    found = evaluator(backbone, attached, moods)
    zero, few = (found.evaluate(None, [build_method(name)], rows) for name in ("zero_shot", "few_shot(examples=2)"))
    assert few.prompt_tokens > 2 * zero.prompt_tokens
    again = found.evaluate(None, [build_method("few_shot(examples=2)")], rows)
    assert [p.probabilities for p in again.predictions] == [p.probabilities for p in few.predictions]


def test_writing_is_scored_against_every_reference(
    backbone: Backbone, attached: Attached, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f'{{"a": "words {n}", "b": "story {n}", "c": ["story {n}", "tale {n}"]}}' for n in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    data = {"data": str(tmp_path / "d.jsonl"), "prompt": "{a}:", "target": "b", "references": "c"}
    task = load_task({**data, "metric": "exact_match"})
    rows = task.splits(1).test[:2]
    texts = [rows[0].references[1], "nothing"]
    monkeypatch.setattr(module, "generate_texts", lambda *_: texts)
    found = evaluator(backbone, attached, task).evaluate(None, [], rows)
    assert found.score == 0.5
    assert found.breakdown == {}
    assert found.predictions[0].references == rows[0].references
    assert found.predictions[1].predicted == "nothing"


def test_a_mixture_is_evaluated_task_by_task(
    backbone: Backbone, attached: Attached, moods: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = load_task({"mixture": ["demo_match", "demo_library"]})
    rows = mixture.splits(20, 0, 12).test
    found = evaluator(backbone, attached, mixture).evaluate(None, [], rows)
    names = {name.split("/")[0] for name in found.scores if "/" in name}
    assert names == {"demo_match", "demo_library"}
    mean = (found.scores["demo_match/accuracy"] + found.scores["demo_library/accuracy"]) / 2
    assert found.score == pytest.approx(mean)
    assert found.examples == len(found.predictions) == len(rows)


def test_auc_of_one_class_is_no_number_and_harms_no_other_measure(moods: Task) -> None:
    from dataclasses import replace

    task = replace(moods, metrics=("auc",))
    probabilities = [{"bad": 0.2, "good": 0.8}, {"bad": 0.6, "good": 0.4}]
    found = score_all(task, ["good", "bad"], ["good", "good"], probabilities)
    assert math.isnan(found["auc"])
    assert found["accuracy"] == 0.5
    assert score_all(task, ["good", "bad"], ["good", "bad"], probabilities)["auc"] == 1.0
    assert "auc" not in score_all(task, ["good", None], ["good", "bad"], None)


def test_a_measure_of_a_class_that_no_row_has_is_no_number(moods: Task) -> None:
    """As of the few rows that costs are measured on, where the class is rare."""
    from dataclasses import replace

    task = replace(moods, metric="recall:bad", metrics=("f1:bad",))
    probabilities = [{"bad": 0.2, "good": 0.8}] * 2
    found = score_all(task, ["good", "good"], ["good", "good"], probabilities)
    assert math.isnan(found["recall:bad"])
    assert math.isnan(found["f1:bad"])
    assert score_all(task, ["bad", "good"], ["bad", "bad"], probabilities)["recall:bad"] == 0.5
    with pytest.raises(UserError, match="no label is called 'worse'"):
        score_all(replace(task, metric="recall:worse"), ["good"], ["good"], probabilities)
