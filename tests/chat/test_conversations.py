"""Conversations as data: the forms that files have, what is refused, and what a study learns of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import write_chat_backbone

from dollartune.backbones.loading import load_backbone
from dollartune.errors import UserError
from dollartune.evaluate.labelled_rows import rows_of_file
from dollartune.evaluate.predict import predict_rows
from dollartune.export.opening import open_adapter
from dollartune.study.api import Study
from dollartune.tasks.base import Example, Task
from dollartune.tasks.conversations import question_turns, read_turns, row_turns
from dollartune.tasks.registry import load_task
from dollartune.tasks.suggest import suggest_task
from dollartune.train.encoding import Encoder

OPENAI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Hello"}]
OASST = [{"role": "prompter", "text": "Hi"}, {"role": "assistant", "text": "Hello"}]
COLUMNS = {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}
EXCHANGE = [{"human": "Hi", "assistant": "Hello"}]
TRANSCRIPT = [{"speaker": "User", "text": "Hi"}, {"speaker": "Bot", "text": "Hello"}]
PLAIN = (("user", "Hi"), ("assistant", "Hello"))


FORMS = [OPENAI, SHAREGPT, PARTS, OASST, json.dumps(OPENAI), COLUMNS, EXCHANGE, TRANSCRIPT]


@pytest.mark.parametrize("value", FORMS)
def test_published_forms_are_recognized(tmp_path: Path, value: Any) -> None:
    rows = [{"id": n, "talk": value} for n in range(3)]
    # equal questions would stay in one split: a number tells them apart
    lines = [json.dumps(row).replace("Hi", f"Hi {n}") for n, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    task = load_task(str(tmp_path / "a.jsonl"))
    assert (task.kind, task.answer_column) == ("generation", "talk")
    assert {row.target for split in task.load().values() for row in split} == {"Hello"}


@pytest.mark.parametrize("wrap", [lambda turns: turns, lambda turns: {"data": {"messages": turns}}])
def test_lines_that_are_conversations_or_hold_them_inside(tmp_path: Path, wrap: Any) -> None:
    lines = [json.dumps(wrap(OPENAI)).replace("Hi", f"Hi {n}") for n in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert sum(map(len, load_task(str(tmp_path / "a.jsonl")).load().values())) == 9


@pytest.mark.parametrize("value", FORMS)
def test_published_forms_are_the_same_turns(value: Any) -> None:
    assert read_turns(value) == PLAIN


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([{"role": "tool", "content": "4"}], "turn 1 is a tool's, and nothing"),
        ([{"from": "function_call", "value": "{}"}], "calls a tool without a name"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "calls a tool without a name"),
        ([{"role": "user", "content": "Hm", "function_call": {"name": "look"}}], "which the assistant alone does"),
        ([{"role": "assistant", "content": "Hello", "weight": 0}], "weight 0"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "a part that is no text"),
        ([{"role": "narrator", "content": "Night"}], "the role 'narrator'"),
        ([{"role": "user", "content": None}], "says nothing"),
        ([{"content": "Hi"}], "has no role"),
        ([*OPENAI, {"role": "system", "content": "Be brief"}], "at the beginning only"),
        ([], "no turns"),
        ("Hi", "neither a list nor JSON"),
        (7, "list of turns"),
    ],
)
def test_what_is_no_conversation_is_said(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_turns(value)


QUESTION = [{"role": "user", "content": "Hi"}]
BRIEF = ("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": QUESTION, "completion": [{"role": "assistant", "content": "Hello"}]}, PLAIN),
        ({"prompt": QUESTION, "completion": "Hello"}, PLAIN),
        ({"prompt": QUESTION, "chosen": OPENAI[1:], "rejected": OPENAI[:1]}, PLAIN),
        ({"system": "Be brief.", "conversations": SHAREGPT}, (BRIEF, *PLAIN)),
        ({"system": "", "conversations": SHAREGPT}, PLAIN),
        (
            {"conversations": [{"from": "system", "value": "Be kind."}, *SHAREGPT], "system": "Be brief."},
            (("system", "Be kind."), *PLAIN),
        ),
        ({"messages": OPENAI, "answer": "another thing"}, PLAIN),
    ],
)
def test_what_stands_beside_a_conversation_is_read_with_it(row: dict[str, Any], turns: Any) -> None:
    column = next(name for name in row if isinstance(row[name], list))
    assert row_turns(row, column) == turns
    assert question_turns(row, column) == (*turns[:-1], ("assistant", ""))


def test_lists_of_messages_in_two_columns_are_one_conversation(tmp_path: Path) -> None:
    rows = [
        {
            "system": "Be brief.",
            "prompt": [{"role": "user", "content": f"Say {n}"}],
            "completion": [{"role": "assistant", "content": f"It is {n}"}],
        }
        for n in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    task = load_task({"data": str(file)})
    for name in ("system", "completion"):
        assert f"column {name!r} is read with the conversation" in task.notes
    for example in task.splits(5, 0, 2).train:
        number = example.target.rpartition(" ")[2]
        assert example.turns == (BRIEF, ("user", f"Say {number}"), ("assistant", f"It is {number}"))


def test_a_few_damaged_rows_are_told_by_their_line_and_do_not_hide_the_conversations(tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": [{"role": "user", "content": f"Say {n}"}, *OPENAI[1:]]} for n in range(30)]
    rows[3], rows[9], rows[15], rows[20] = (
        {"messages": "oops"},
        {"nothing": 1},
        {"messages": []},
        {"messages": [{"content": "x"}]},
    )
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf8")
    with pytest.raises(UserError, match=r"line 4: column 'messages': the conversation is neither"):
        load_task({"data": str(file)})
    task = load_task({"data": str(file), "on_bad_row": "skip"})
    assert any("skipped 4 malformed rows" in note for note in task.notes)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
ASKED = {"role": "user", "content": "How is Bern?"}
TOLD = {"role": "assistant", "content": "It is wet."}
WITH_TOOLS = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    TOLD,
]


@pytest.mark.parametrize(
    "value",
    [
        WITH_TOOLS,
        [
            ASKED,
            {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}],
            },
            {"role": "tool", "content": "rain"},
            TOLD,
        ],
        [
            ASKED,
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": '{"city": "Bern"}'},
            },
            {"role": "function", "content": "rain"},
            TOLD,
        ],
        [
            {"from": "human", "value": "How is Bern?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It is wet."},
        ],
    ],
)
def test_published_forms_of_calls_are_the_same_turns(value: Any, tmp_path: Path) -> None:
    turns = read_turns(value)
    assert [role for role, _ in turns] == ["user", "calls", "tool", "assistant"]
    assert json.loads(turns[1][1]) == {"content": "", "tool_calls": [CALL]}
    assert json.loads(turns[2][1]) == {"content": "rain"}
    file = tmp_path / "rows.jsonl"
    text = json.dumps({"messages": value, "tools": [CALL]})
    file.write_text("\n".join(text.replace("How is Bern?", f"How is Bern, {n}?") for n in range(20)), encoding="utf8")
    task = load_task({"data": str(file)})
    assert "column 'tools' is read with the conversation" in task.notes
    example = task.load()["train"][0]
    assert example.turns[0] == ("tools", json.dumps([CALL]))
    assert example.turns[2:] == turns[1:]
    assert example.target == "It is wet."


def test_calls_that_no_words_follow_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Hi {n}"}, OPENAI[1], *WITH_TOOLS[:2]]} for n in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    assert load_task({"data": str(file)}).load()["train"][0].turns[1:] == PLAIN[1:]
    file.write_text("\n".join([json.dumps({"messages": WITH_TOOLS[:2]})] * 20), encoding="utf8")
    with pytest.raises(UserError, match="answers in words"):
        load_task({"data": str(file)})


def conversations(path: Path, column: str = "messages", more: int = 0) -> Path:
    things = ["the film", "my lunch", "this song", "a long walk", "the book", "our trip", "the game", "her speech"]
    rows = []
    for number in range(4):
        for thing in things:
            turns = [
                {"role": "user", "content": f"What of {thing} {number}?"}, {"role": "assistant", "content": "which one"},
                {"role": "user", "content": f"number {number}"}, {"role": "assistant", "content": f"it was {number}"},
                *[{"role": "user", "content": "Thank you"}] * more,
            ]  # fmt: skip
            rows.append({column: turns, "topic": thing})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_of_conversations_is_recognized(tmp_path: Path) -> None:
    data = conversations(tmp_path / "talk.jsonl", "dialogue", more=1)
    task = load_task({"data": str(data)})
    assert task.kind == "generation"
    assert any("'dialogue' is taken as a conversation" in note for note in task.notes)
    row = task.load()["train"][0]
    assert [role for role, _ in row.turns] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]  # what nobody answers is left out
    assert row.target == row.turns[-1][1]
    assert row.target not in task.prompt(row)
    entry, again = suggest_task(str(data))
    assert entry["conversation"] == "dialogue"
    assert load_task(entry).load() == again.load()


def test_bad_conversations_stop_or_are_left_out(tmp_path: Path) -> None:
    data = conversations(tmp_path / "talk.jsonl")
    data.write_text(data.read_text() + "\n" + json.dumps({"messages": [{"role": "assistant", "content": "Hi"}]}))
    with pytest.raises(UserError, match="no question that the assistant answers"):
        load_task({"data": str(data)})
    task = load_task({"data": str(data), "on_bad_row": "skip"})
    assert sum(map(len, task.load().values())) == 32
    with pytest.raises(UserError, match="take out label"):
        load_task({"data": str(data), "conversation": "messages", "label": "topic"})


def test_pairs_and_alpacas_columns_are_turns_of_a_chat(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_chat_backbone(tmp_path / "model", "chatml")))
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}, I think."} for n in range(30)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = load_task({"data": str(data), "prompt": "{prompt}", "target": "completion"})
    example = task.load()["train"][0]
    (row,) = Encoder(backbone).encode(task, [example])
    turns = [{"role": "user", "content": example.fields["prompt"]}]
    expected = backbone.processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(row.prompt) == expected


def test_a_study_of_conversations_learns_every_answer_and_predicts_the_last(tmp_path: Path) -> None:
    model = write_chat_backbone(tmp_path / "model", "chatml")
    data = conversations(tmp_path / "talk.jsonl")
    study = Study(
        name="talk", backbone=str(model), task={"data": str(data), "max_answer_tokens": 6}, scales=[16], seeds=1,
        methods=[{"lora": {"rank": 4, "lr": 0.02}}, {"prompt": {"tokens": 4}}], keep_adapters="all",
        training={"epochs": 6, "batch_size": 4, "validation_rows": 4}, evaluation={"rows": 4, "forgetting": False},
        output=str(tmp_path / "studies"),
    )  # fmt: skip
    records = study.run().done()
    assert {record.trial.group for record in records} == {"lora", "prompt"}
    record = next(record for record in records if record.trial.group == "lora")
    assert record.training is not None
    history = record.training.history
    assert history[-1].validation_loss < history[0].validation_loss
    tuned = open_adapter(tmp_path / "studies" / "talk" / "trials" / record.id / "adapter")
    asked = [{"role": "user", "content": "What of the film 1?"}]
    answered = [*asked, {"role": "assistant", "content": "which one"}]
    first, again = predict_rows(tuned, [{"messages": asked}, {"messages": answered}])
    scored = rows_of_file(tuned, data, None, "stop")
    assert [len(example.turns) for example in scored.examples] == [4] * 32
    assert scored.examples[0].target == "it was 0"
    assert first.predicted == again.predicted  # an answer that stands there is asked for again, and not shown


def test_masks_of_real_conversations_are_those_of_transformers(shared: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(write_chat_backbone(tmp_path / "model", "chatml")))
    file = shared / "data" / "sgd" / "test.jsonl.gz"
    if not file.is_file():
        pytest.skip("the conversations of sgd are not there")
    with gzip.open(file, "rt", encoding="utf8") as lines:
        rows = [json.loads(line)["messages"] for _, line in zip(range(3), lines, strict=False)]
    task = Task("sgd", "generation", dict, None, metric="rougeL")
    encoder = Encoder(backbone, max_length=4096)
    encoder.max_length = encoder.positions = 4096  # a mask needs no positions
    for messages in rows:
        turns = read_turns(messages)
        (row,) = encoder.encode(task, [Example("x", {}, target=turns[-1][1], turns=turns)])
        found = backbone.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = row.prompt + row.answer
        learned = [int(place in set(row.spoken)) for place in range(len(row.prompt))] + [1] * len(row.answer)
        assert found["input_ids"][: len(ids)] == list(ids)
        assert found["assistant_masks"][: len(ids)] == learned
        assert sum(found["assistant_masks"]) == sum(learned) > 0
