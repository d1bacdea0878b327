"""Chat templates: prompts, answers, solved examples and conversations have the tokens that transformers gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import ENDS, TEMPLATES, write_chat_backbone

from dollartune.attachment.attached import Attached
from dollartune.backbones.chat import chat_format, end_tokens, stored_template
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Evaluator
from dollartune.evaluate.generation import generate_texts
from dollartune.methods.few_shot import FewShot
from dollartune.methods.zero_shot import ZeroShot
from dollartune.tasks.base import Example, Task, Template
from dollartune.tasks.conversations import row_turns
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoder
from dollartune.trials.trial import plan_trials

WORDS = {"a": "negative", "b": "positive"}
TURNS = (
    ("user", "The film was fine. Say yes"),
    ("assistant", "yes"),
    ("user", "And the song?"),
    ("assistant", "no, it was dull today"),
    ("user", "Thank you"),
    ("assistant", "a long walk"),
)


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def chat_backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_chat_backbone(tmp_path_factory.mktemp(request.param), request.param)))


def a_task(**settings: Any) -> Task:
    return Task("t", "classification", dict, Template("{text} Good or bad?"), WORDS, **settings)


def rows() -> list[Example]:
    return [Example(f"test/{i}", {"text": text}, "b") for i, text in enumerate(("the film was fine", "our trip"))]


def by_transformers(backbone: Backbone, *turns: tuple[str, str], answer_follows: bool = True) -> tuple[int, ...]:
    messages = [{"role": role, "content": text} for role, text in turns]
    return tuple(
        backbone.processor.apply_chat_template(
            messages, add_generation_prompt=answer_follows, tokenize=True, return_dict=False
        )
    )


def test_prompt_and_answer_are_what_transformers_writes(chat_backbone: Backbone) -> None:
    encoded = Encoder(chat_backbone).encode(a_task(), rows())
    for row, example in zip(encoded, rows(), strict=True):
        question = ("user", f"{example.fields['text']} Good or bad?")
        assert row.prompt == by_transformers(chat_backbone, question)
        whole = by_transformers(chat_backbone, question, ("assistant", "positive"), answer_follows=False)
        together = row.prompt + row.answer
        assert whole[: len(together)] == together
        rest = chat_backbone.processor.decode(whole[len(together) :])
        assert rest.strip() == ""  # a line's end at most stands after the end mark
        assert row.prompt.count(chat_backbone.processor.bos_token_id) <= 1


def test_the_end_mark_is_the_templates(chat_backbone: Backbone) -> None:
    chat = chat_format(chat_backbone)
    assert chat is not None
    kind = next(name for name, text in TEMPLATES.items() if text == chat.template)
    mark = chat_backbone.processor.convert_tokens_to_ids(ENDS[kind])
    assert chat.end == (mark,)
    assert {mark, chat_backbone.processor.eos_token_id} <= end_tokens(chat_backbone)


def test_label_words_follow_the_turn_as_the_tokenizer_cuts_them(chat_backbone: Backbone) -> None:
    encoder = Encoder(chat_backbone)
    for word, ids in zip(WORDS.values(), encoder.label_answers(a_task()), strict=True):
        whole = by_transformers(chat_backbone, ("user", "q"), ("assistant", word), answer_follows=False)
        before = by_transformers(chat_backbone, ("user", "q"))
        assert whole[len(before) : len(before) + len(ids)] == ids


def test_where_the_end_of_a_prompt_is_cut_otherwise_before_a_word_the_answer_is_cut_by_itself(
    chat_backbone: Backbone,
) -> None:
    # GPT-2's pattern makes one token of two line ends at the end of a text, and two of them before a word
    template = "{% for m in messages %}{{ m.role }}:\n\n{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:\n\n{% endif %}"
    (row, _) = Encoder(chat_backbone).encode(a_task(chat_template=template), rows())
    tokenizer = chat_backbone.processor
    assert tokenizer.decode(row.prompt) == "user:\n\nthe film was fine Good or bad?assistant:\n\n"
    assert tokenizer.decode(row.answer) == f"positive{tokenizer.eos_token}"


def test_system_text_is_a_turn_or_the_users_first_words(chat_backbone: Backbone) -> None:
    (row, _) = Encoder(chat_backbone).encode(a_task(system="Be brief."), rows())
    question = "the film was fine Good or bad?"
    try:
        expected = by_transformers(chat_backbone, ("system", "Be brief."), ("user", question))
    except Exception:  # templates raise errors of their own
        expected = by_transformers(chat_backbone, ("user", f"Be brief.\n\n{question}"))
    assert row.prompt == expected


def test_solved_examples_are_turns(chat_backbone: Backbone) -> None:
    pool = [Example("train/0", {"text": "this song"}, "a"), Example("train/1", {"text": "my lunch"}, "b")]
    evaluator = Evaluator(
        chat_backbone, Attached(chat_backbone.model, chat_backbone.anatomy), a_task(), Encoder(chat_backbone), pool
    )
    (row, _) = evaluator.encode(rows(), FewShot(examples=2, choose="random").prompting, 0)
    shots = {
        example.id: (("user", f"{example.fields['text']} Good or bad?"), ("assistant", WORDS[str(example.label)]))
        for example in pool
    }
    question = ("user", "the film was fine Good or bad?")
    orders = [(*shots["train/0"], *shots["train/1"]), (*shots["train/1"], *shots["train/0"])]
    assert row.prompt in [by_transformers(chat_backbone, *order, question) for order in orders]


def test_calibration_asks_its_empty_questions_in_the_same_form(chat_backbone: Backbone) -> None:
    attached = Attached(chat_backbone.model, chat_backbone.anatomy)
    evaluator = Evaluator(chat_backbone, attached, a_task(), Encoder(chat_backbone), free_generation=False)
    plain = evaluator.evaluate(None, [ZeroShot()], rows())
    calibrated = evaluator.evaluate(None, [ZeroShot(calibrate=True)], rows())
    assert plain.predictions[0].probabilities != calibrated.predictions[0].probabilities
    assert plain.prompt_tokens == calibrated.prompt_tokens


def test_conversations_learn_what_the_assistant_says_and_nothing_else(chat_backbone: Backbone) -> None:
    task = Task("chat", "generation", dict, None, metric="rougeL", max_answer_tokens=8)
    example = Example("train/0", {}, target=TURNS[-1][1], turns=TURNS)
    (row,) = Encoder(chat_backbone).encode(task, [example])
    ids = row.prompt + row.answer
    learned = [False] * len(row.prompt) + [True] * len(row.answer)
    for place in row.spoken:
        learned[place] = True
    whole = by_transformers(chat_backbone, *TURNS, answer_follows=False)
    assert whole[: len(ids)] == ids
    tokenizer = chat_backbone.processor
    if "{% generation %}" in tokenizer.chat_template:
        messages = [{"role": role, "content": text} for role, text in TURNS]
        found = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert [bool(one) for one in found["assistant_masks"][: len(ids)]] == learned
    said = "".join(tokenizer.decode([token]) for token, counts in zip(ids, learned, strict=True) if counts)
    end = tokenizer.decode(list(row.answer[-1:]))
    spoken = [text for role, text in TURNS if role == "assistant"]
    assert [text.strip() for text in said.split(end)] == [*spoken, ""]
    batch = Collator(chat_backbone)([row])
    assert batch.keep is not None
    assert batch.counts == (sum(learned),)
    expected = [token for token, counts in zip(ids, learned, strict=True) if counts]
    assert batch.targets.tolist() == expected
    # logits at a place say what the next token is
    places = batch.keep[1].tolist()
    assert [ids[place + 1] for place in places] == expected
    assert batch.inputs["input_ids"][0].tolist() == list(ids[:-1])


FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [
    {"role": "user", "content": "How is Bern?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}},
    ]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It is wet."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still wet."},
]  # fmt: skip


def test_turns_of_tools_are_the_templates_and_only_the_assistant_is_learned(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_chat_backbone(tmp_path / "model", "hermes")))
    task = Task("chat", "generation", dict, None, metric="rougeL", max_answer_tokens=8)
    turns = row_turns({"messages": CALLS, "tools": [FUNCTION]}, "messages")
    (row,) = Encoder(backbone).encode(task, [Example("x", {}, target="Still wet.", turns=turns)])
    found = backbone.processor.apply_chat_template(
        CALLS, tools=[FUNCTION], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = row.prompt + row.answer
    learned = [int(place in row.spoken) for place in range(len(row.prompt))] + [1] * len(row.answer)
    assert found["input_ids"][: len(ids)] == list(ids)
    assert found["assistant_masks"][: len(ids)] == learned
    assert sum(found["assistant_masks"]) == sum(learned)
    # a server that is given the same messages asks the same
    chat = chat_format(backbone)
    assert chat is not None
    assert chat.message_ids(CALLS[:-1], [FUNCTION]) == row.prompt
    # the functions stay where older turns give way
    encoder = Encoder(backbone, max_length=row.length - 1)
    (short,) = encoder.encode(task, [Example("x", {}, target="Still wet.", turns=turns)])
    assert short.prompt == chat.message_ids(CALLS[4:-1], [FUNCTION])


@pytest.mark.parametrize(("kind", "why"), [("chatml", "does not write calls"), ("llama3", "does not write calls")])
def test_a_template_that_knows_no_calls_refuses_them(kind: str, why: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(write_chat_backbone(tmp_path / "model", kind)))
    task = Task("chat", "generation", dict, None, metric="rougeL", max_answer_tokens=8)
    turns = row_turns({"messages": CALLS}, "messages")
    with pytest.raises(UserError, match=why):
        Encoder(backbone).encode(task, [Example("x", {}, target="Still wet.", turns=turns)])
    turns = row_turns({"messages": CALLS[-2:], "tools": [FUNCTION]}, "messages")
    with pytest.raises(UserError, match="shows no tools"):
        Encoder(backbone).encode(task, [Example("x", {}, target="Still wet.", turns=turns)])


def test_long_conversations_lose_their_oldest_turns(chat_backbone: Backbone) -> None:
    task = Task("chat", "generation", dict, None, metric="rougeL", max_answer_tokens=8)
    example = Example("train/0", {}, target=TURNS[-1][1], turns=TURNS)
    whole = Encoder(chat_backbone).encode(task, [example])[0]
    encoder = Encoder(chat_backbone, max_length=whole.length - 1)
    (row,) = encoder.encode(task, [example])
    assert row.prompt == by_transformers(chat_backbone, *TURNS[2:-1])
    assert row.answer == whole.answer
    assert len(row.spoken) < len(whole.spoken)
    assert encoder.shortened == 1


def test_never_and_a_stored_template_decide(chat_backbone: Backbone) -> None:
    encoder = Encoder(chat_backbone)
    (plain, _) = encoder.encode(a_task(chat="never"), rows())
    assert plain.prompt == tuple(chat_backbone.processor("the film was fine Good or bad?").input_ids)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    (other, _) = encoder.encode(a_task(chat_template=template), rows())
    assert chat_backbone.processor.decode(other.prompt) == "[user] the film was fine Good or bad?\n[assistant]"


def test_generation_ends_at_the_end_of_a_turn(chat_backbone: Backbone) -> None:
    chat = chat_format(chat_backbone)
    assert chat is not None
    model = chat_backbone.model
    (row, _) = Encoder(chat_backbone).encode(a_task(), rows())
    with torch.no_grad():
        bias = torch.zeros(model.lm_head.weight.shape[0])
        bias[list(chat.end)] = 1e4  # the end mark is what it writes first
        hook = model.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
        try:
            texts = generate_texts(chat_backbone, Attached(model, chat_backbone.anatomy), None, [row], 5)
        finally:
            hook.remove()
    assert texts == [""]


def test_without_a_template_all_stays_as_it_is(backbone: Backbone) -> None:
    assert chat_format(backbone) is None
    (row, _) = Encoder(backbone).encode(a_task(), rows())
    assert row.prompt == tuple(backbone.processor("the film was fine Good or bad?").input_ids)
    with pytest.raises(UserError, match="no chat template"):
        Encoder(backbone).encode(a_task(chat="always"), rows())
    assert stored_template(backbone.name) is None


def test_conversations_without_a_template_are_lines(backbone: Backbone) -> None:
    task = Task("chat", "generation", dict, None, metric="rougeL", max_answer_tokens=8)
    (row,) = Encoder(backbone).encode(task, [Example("train/0", {}, target=TURNS[3][1], turns=TURNS[:4])])
    text = backbone.processor.decode(row.prompt, skip_special_tokens=True)
    assert text == f"user: {TURNS[0][1]}\nassistant: yes\nuser: {TURNS[2][1]}\nassistant:"
    assert backbone.processor.decode([row.prompt[place] for place in row.spoken]).strip() == "yes"


def test_the_files_of_a_backbone_tell_its_template(chat_backbone: Backbone) -> None:
    assert stored_template(chat_backbone.name) == chat_backbone.processor.chat_template


def test_classifiers_read_the_text_itself(chat_backbone: Backbone) -> None:
    classifier = replace(chat_backbone, objective="classification")
    assert chat_format(classifier) is None


def test_a_template_is_part_of_a_trials_identity_and_its_absence_is_not(tmp_path: Path, local_backbone: Any) -> None:
    def trial(backbone: Path, task: Any) -> Any:
        settings = StudySettings(backbone=str(backbone), task=task, methods=["zero_shot"], seeds=1)
        return plan_trials(settings, [(0, 0, "language", False)], ["demo_library"])[0]

    asked = write_chat_backbone(tmp_path / "asked", "chatml")
    never = {"preset": "demo_library", "chat": "never"}
    assert "chat" in json.loads(trial(asked, "demo_library").conditions)
    assert "chat" not in json.loads(trial(asked, never).conditions)
    assert "chat" not in json.loads(trial(local_backbone("llama"), "demo_library").conditions)
