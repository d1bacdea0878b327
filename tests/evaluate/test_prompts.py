"""Solved examples in the prompt: which, in what order, and what happens where they do not fit."""

from collections import Counter
from typing import Any

from dollartune.backbones.loading import Backbone
from dollartune.evaluate.prompts import _Chooser, content_free, few_shot_encoded
from dollartune.methods.base import Prompting
from dollartune.tasks.base import Example, Task, Template
from dollartune.train.encoding import Encoder

POOL = [Example(f"train/{n}", {"text": text}, str(n % 3 and 1)) for n, text in enumerate(
    ["cats and dogs", "rain and snow", "a red car", "a blue car", "dogs at night", "the sea in June"] * 2
)]  # fmt: skip
TASK = Task("t", "classification", dict, Template("{text}:"), {"0": "no", "1": "yes"})


def choose(seed: int = 0, question: str = "anything", **settings: Any) -> list[Example]:
    return _Chooser(TASK, POOL, Prompting(**{"examples": 4, **settings}), seed).choose(
        Example("q", {"text": question}, "0")
    )


def test_a_seed_decides_which_are_chosen() -> None:
    for how in ("balanced", "random"):
        assert choose(0, choose=how) == choose(0, "something else", choose=how)
        assert len({tuple(e.id for e in choose(seed, choose=how)) for seed in range(8)}) > 4


def test_balanced_choices_have_the_same_number_of_each_label() -> None:
    for seed in range(5):
        assert Counter(e.label for e in choose(seed, examples=6)) == {"0": 3, "1": 3}
        assert abs(Counter(e.label for e in choose(seed, examples=5))["0"] - 2.5) == 0.5
    assert len({e.id for e in choose(examples=6)}) == 6


def test_a_short_pool_gives_what_it_has() -> None:
    assert len(choose(examples=50)) == 12
    assert len(choose(examples=50, choose="random")) == 12


def test_similar_choices_end_with_the_most_similar() -> None:
    found = choose(question="a red car by the sea", examples=2, choose="similar")
    assert found[-1].fields["text"] == "a red car"
    assert {e.fields["text"] for e in choose(question="dogs", examples=4, choose="similar")} == {
        "cats and dogs",
        "dogs at night",
    }


def encoded_text(backbone: Backbone, config: Prompting, length: int = 128) -> str:
    encoder = Encoder(backbone, length)
    question = Example("q", {"text": "is this one"}, "1")
    (found,) = few_shot_encoded(encoder, TASK, [question], POOL, config, None, 0)
    assert len(found.prompt) + len(found.answer) <= length
    return str(backbone.processor.decode(found.prompt, skip_special_tokens=True))


def test_the_prompt_is_solved_examples_and_then_the_question(backbone: Backbone) -> None:
    text = encoded_text(backbone, Prompting(examples=2, separator="\n"))
    *solved, question = text.split("\n")
    assert question == "is this one:"
    shots = choose(examples=2)
    assert solved == [f"{e.fields['text']}: {TASK.label_words[e.label]}" for e in shots]  # type: ignore[index]


def test_examples_that_do_not_fit_are_left_out_from_the_front(backbone: Backbone) -> None:
    config = Prompting(examples=6, separator="\n")
    whole, short = encoded_text(backbone, config), encoded_text(backbone, config, 32)
    assert 0 < short.count("\n") < whole.count("\n") == 6
    assert whole.endswith(short)
    assert encoded_text(backbone, config, 10).count("\n") == 0


def test_questions_without_content() -> None:
    found = content_free(TASK, None)
    assert [TASK.prompt(example) for example in found] == ["N/A:", "[MASK]:", ":"]
    other = Template("{title} {body}")
    assert set(content_free(TASK, other)[0].fields) == {"title", "body"}
