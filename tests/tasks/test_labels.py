"""One rule makes classes, matches rows to them and says what is no label."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dollartune.tasks.labels import (
    classes_of,
    fold,
    is_no_label,
    label_problem,
    label_text,
    match_label,
    number_to_predict,
)

SAME = [
    ("Positive", " POSITIVE "),
    ("very good", "Very\u00a0 good"),
    ("good", "go\u200bod\ufeff"),
    ("caf\u00e9", "CAFE\u0301"),
    ("Straße", "STRASSE"),
    (1, 1.0),
    (1, "1"),
    (1, "1.0"),
    (1, "+1"),
    (-2, "-2.00"),
    (["a"], "A"),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_spellings_that_a_person_calls_the_same(one: Any, other: Any) -> None:
    assert fold(one) == fold(other)
    assert len(classes_of([one, other, "third", one]).labels) == 2
    (label,) = classes_of([one]).labels
    assert match_label(other, [label, "third"]) == label


@pytest.mark.parametrize(("one", "other"), [("01", "1"), ("1.10", "1.1"), (1, -1), ("a b", "ab"), ("x", "х")], ids=repr)
def test_labels_that_differ(one: Any, other: Any) -> None:
    assert len(classes_of([one, other]).labels) == 2


@given(st.lists(st.one_of(st.text(max_size=5), st.integers(-3, 3), st.booleans(), st.floats()), min_size=1))
def test_each_label_finds_its_class(values: list[Any]) -> None:
    """Whatever made the classes is matched to one of them; the order of the rows changes nothing."""
    labels = classes_of(values).labels
    assert classes_of(values[::-1]).labels == labels
    for value in values:
        assert is_no_label(value) or match_label(value, labels) in labels


def test_truth_values_and_numbers_are_two_classes() -> None:
    found = classes_of([1, "1", True, 1.0, 0, "0", False, 0.0, 1])
    assert found.labels == ("0", "1")
    assert match_label("true", found.labels) == "1"
    assert match_label("No", found.labels) == "0"
    assert classes_of([True, False]).labels == ("no", "yes")
    assert match_label(True, ["1", "2", "3"]) is None  # stars: true is none of them


def test_listed_words_keep_spellings_apart() -> None:
    assert [match_label(label, ["US", "us"]) for label in ("US", "us")] == ["US", "us"]
    assert match_label("null", ["null", "one"]) == "null"


@pytest.mark.parametrize("value", [None, "", " ", math.nan, "NaN", "<NA>", "null", "#N/A", [], [None]], ids=repr)
def test_what_is_no_label(value: Any) -> None:
    assert is_no_label(value)
    assert classes_of([value, "a", "b"]).labels == ("a", "b")


@pytest.mark.parametrize("value", [0, False, "no", "none", -1, "0"], ids=repr)
def test_what_is_a_label(value: Any) -> None:
    assert not is_no_label(value)


def test_doubtful_labels_are_counted() -> None:
    (note,) = classes_of([1, 0, -1, -1, 1]).notes
    assert "'-1' stands on 2 rows" in note
    assert "label_words" in note
    assert not classes_of([1, -1, 1, -1]).notes  # the two classes of a support vector machine


def test_structures_are_no_labels() -> None:
    assert "a list of 2 values" in (label_problem(["a", "b"]) or "")
    assert "an object" in (label_problem({"a": 1}) or "")
    assert label_problem(["a"]) is None


@pytest.mark.parametrize(
    ("labels", "rows", "refused"),
    [
        ([f"{n / 13:.2f}" for n in range(55)], 60, True),
        ([str(n) for n in range(90)], 100, True),
        ([str(n) for n in range(77)], 10_000, False),  # class numbers
        ([str(n / 2) for n in range(11)], 60, False),  # half stars
        (["1", "2", "many"], 3, False),
    ],
)
def test_numbers_to_predict(labels: list[str], rows: int, refused: bool) -> None:
    assert (number_to_predict(labels, rows) is not None) == refused


@pytest.mark.parametrize(
    ("value", "label"),
    [("['joy']", "joy"), ('["joy"]', "joy"), ("[3]", "3"), ("[joy]", "[joy]"), ("[sic] so", "[sic] so")],
)
def test_a_list_of_one_written_as_text_is_its_one(value: str, label: str) -> None:
    assert label_text(value) == label
    assert label_problem(value) is None
    assert classes_of([value, "other"]).labels == tuple(sorted((label, "other")))


def test_a_list_of_several_written_as_text_is_no_label() -> None:
    assert "is a list of 2 values" in str(label_problem("['joy', 'anger']"))


def test_labels_that_join_others_are_told() -> None:
    notes = classes_of(["joy", "anger", "fear", "joy,anger", "rock, paper"]).notes
    assert notes == ("labels that join others by ',' are taken as classes of their own: 'joy,anger'",)


@pytest.mark.parametrize("write", ["{:.2f} €", "${:,.2f}", "{:.1f}%", "{:.2f}"])
def test_amounts_are_numbers_to_predict(write: str) -> None:
    labels = [write.format(n * 1234.56) for n in range(30)]
    # with a point before the fraction, and with a comma as in most of Europe
    for written in (labels, [label.translate({46: ",", 44: "."}) for label in labels]):
        assert number_to_predict(written, 40) is not None


def test_versions_are_no_numbers_to_predict() -> None:
    assert number_to_predict([f"1.2.{n}" for n in range(30)], 40) is None
