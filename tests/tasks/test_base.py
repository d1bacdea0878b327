"""Templates, prompts, answers and scales."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.tasks import Example, Task, Template

names = st.text(st.characters(categories=["L", "N"], include_characters="_ .-"), min_size=1, max_size=8)
literals = st.text(max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(literals, names, st.text(max_size=10)), max_size=4), literals)
def test_template_puts_each_column_in_its_place(parts: list[tuple[str, str, str]], tail: str) -> None:
    """Any literal text (braces doubled), any column name, any value (braces in it are text)."""
    fields = {name: value for _, name, value in parts}
    assume(all(name.strip() for name in fields))

    def doubled(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    template = Template("".join(doubled(literal) + "{" + name + "}" for literal, name, _ in parts) + doubled(tail))
    assert template(fields) == "".join(literal + fields[name] for literal, name, _ in parts) + tail
    assert set(template.columns) == set(fields)


@pytest.mark.parametrize("text", ["{open", "close}", "{a!}", "{"])
def test_broken_template_says_how_to_write_a_brace(text: str) -> None:
    with pytest.raises(UserError, match="Write a literal brace as"):
        Template(text)


def test_formats_of_a_place() -> None:
    assert Template("{score:.1f} {{x}}")({"score": 2.345}) == "2.3 {x}"
    with pytest.raises(UserError, match=r"has {text: now}, which does not suit the data"):
        Template("{text: now}")({"text": "x"})
    with pytest.raises(UserError, match=r"write {text} without !r"):
        Template("{text!r}")
    with pytest.raises(UserError, match="Write a literal brace as"):
        Template('{"answer": 1}')({"text": "x"})


def test_missing_column_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"uses column 'reveiw'; the data has \['review', 'stars'\]. Did you mean 'review'"
    ):
        Template("{reveiw}")({"review": "fine", "stars": 3})


def task(count: int = 100) -> Task:
    rows = [Example(f"train/{number}", {"text": str(number)}, label="a") for number in range(count)]
    return Task(
        "demo",
        "classification",
        lambda: {"train": rows, "validation": rows, "test": rows},
        label_words={"a": "A", "b": "B"},
    )


def test_smaller_scales_are_the_beginning_of_larger_ones() -> None:
    small, large = task().splits(10), task().splits(60)
    assert large.train[:10] == small.train
    assert large.test == small.test
    assert task().splits(10) == small
    assert task().splits(10, seed=1) != small
    assert len(task().splits(None, cap=7).test) == 7


def test_answers_and_groups() -> None:
    example = Example("test/0", {"text": "x"}, label="b")
    single = task()
    assert single.answer(example) == "B"
    assert single.labels == ("a", "b")
    assert single.groups([example]) == [(single, (example,))]
    with pytest.raises(UserError, match="no prompt: it is an image task"):
        single.prompt(example)


def test_another_draw_changes_the_training_rows_alone() -> None:
    first, second = task().splits(10), task().splits(10, draw=3)
    assert first.train != second.train
    assert (first.validation, first.test) == (second.validation, second.test)
    assert task().splits(10, draw=3) == second
    assert {row.id for row in task().splits(None, draw=3).train} == {row.id for row in task().splits(None).train}
