"""Label measures against scikit-learn, with "other" predictions, and their additive statistics."""

from __future__ import annotations

import random

import numpy
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.metrics import get

LABELS = ["a", "b", "c", "d"]
pairs = st.lists(st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from(LABELS[:3])), min_size=1, max_size=60)


def plain(predictions: list[str | None]) -> list[str]:
    return ["other" if prediction is None else prediction for prediction in predictions]


@settings(deadline=None)
@given(pairs)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_agrees_with_sklearn(rows: list[tuple[str | None, str]]) -> None:
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    theirs, classes = plain(predictions), sorted(set(references))
    assert get("accuracy").score(predictions, references) == pytest.approx(
        sklearn.metrics.accuracy_score(references, theirs)
    )
    recall = sklearn.metrics.recall_score(references, theirs, labels=classes, average="macro", zero_division=0)
    assert get("balanced_accuracy").score(predictions, references) == pytest.approx(recall)
    macro = sklearn.metrics.f1_score(references, theirs, labels=classes, average="macro", zero_division=0)
    assert get("f1").score(predictions, references) == pytest.approx(macro)
    assert get("matthews").score(predictions, references) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(references, theirs), abs=1e-12
    )
    binary = [label == classes[0] for label in references], [label == classes[0] for label in theirs]
    assert get(f"f1:{classes[0]}").score(predictions, references) == pytest.approx(
        sklearn.metrics.f1_score(*binary, zero_division=0)
    )


def test_other_is_a_wrong_answer_of_its_own() -> None:
    references = ["yes", "yes", "no", "no"]
    assert get("accuracy").score(["yes", None, "no", "no"], references) == 0.75
    assert get("balanced_accuracy").score(["yes", None, "no", "no"], references) == 0.75
    # A wrong "no" also costs the class "no" precision; an "other" does not.
    assert get("f1").score(["yes", None, "no", "no"], references) > get("f1").score(
        ["yes", "no", "no", "no"], references
    )


def test_constant_prediction_scores_nothing_beyond_accuracy() -> None:
    references = ["yes"] * 61 + ["no"] * 39
    predictions = ["yes"] * 100
    assert get("accuracy").score(predictions, references) == 0.61
    assert get("balanced_accuracy").score(predictions, references) == 0.5
    assert get("matthews").score(predictions, references) == 0.0


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_agrees_with_sklearn(classes: int) -> None:
    generator = random.Random(classes)
    labels = LABELS[:classes]
    references = [generator.choice(labels) for _ in range(200)]
    raw = numpy.array([[generator.random() + 0.4 * (label == truth) for label in labels] for truth in references])
    table = raw / raw.sum(axis=1, keepdims=True)
    predictions = [dict(zip(labels, row, strict=True)) for row in table.tolist()]
    wanted = (
        sklearn.metrics.roc_auc_score([label == labels[1] for label in references], table[:, 1])
        if classes == 2
        else sklearn.metrics.roc_auc_score(references, table, multi_class="ovr", labels=labels)
    )
    assert get("auc").score(predictions, references) == pytest.approx(wanted)


def test_auc_says_when_it_is_undefined() -> None:
    with pytest.raises(UserError, match="two classes"):
        get("auc").score([{"a": 0.1}], ["a"])
    with pytest.raises(UserError, match="'b' is missing"):
        get("auc").score([{"a": 0.1}, {"a": 0.2}], ["a", "b"])


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "f1:a", "matthews"])
def test_statistics_give_the_score_of_every_resample(name: str) -> None:
    generator = numpy.random.default_rng(0)
    references = [LABELS[number] for number in generator.integers(0, 3, 80)]
    predictions = [reference if generator.random() < 0.6 else None for reference in references]
    metric = get(name)
    statistics = metric.statistics(predictions, references)
    assert statistics is not None
    draws = generator.integers(0, 80, (20, 80))
    counts = numpy.stack([numpy.bincount(draw, minlength=80) for draw in draws])
    fast = statistics.score(counts @ statistics.values)
    slow = [metric.score([predictions[i] for i in draw], [references[i] for i in draw]) for draw in draws]
    assert fast == pytest.approx(slow)


def test_per_example_exists_only_where_its_mean_is_the_score() -> None:
    predictions, references = ["a", None, "b"], ["a", "a", "b"]
    assert get("accuracy").per_example(predictions, references) == [1.0, 0.0, 1.0]
    assert get("balanced_accuracy").per_example(predictions, references) is None


def test_unequal_lengths_and_no_predictions_are_refused() -> None:
    with pytest.raises(UserError, match="2 predictions, but 1 references"):
        get("accuracy").score(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no predictions"):
        get("f1").score([], [])


def test_unknown_class_of_binary_f1_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'pneumonia'"):
        get("f1:pneumona").score(["normal"], ["pneumonia"])
