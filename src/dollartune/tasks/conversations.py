"""Conversations as data: a column with a list of turns, as OpenAI (`messages`) and ShareGPT (`conversations`) write it.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello. Which city?"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello. Which city?"}]}
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello. Which city?"}]}

What the assistant says last is the text to write, and what stands before it is shown; its earlier turns are learned too. A column
`system` beside a conversation is its first turn. Alpaca's files (`instruction`, `input`, `output`) and pairs of texts (`prompt`,
`completion`) are tables, which `columns` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, SplitName, Template, place

if TYPE_CHECKING:
    from dollartune.tasks.rows import BadRows, Row

Turn = tuple[str, str]
"""(role, text)."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Role as a file writes it -> role that chat templates know."""
_TOOL_ROLES = ("tool", "function", "observation", "ipython", "tool_call", "function_call")
_FORMS = (("role", "content"), ("from", "value"), ("role", "text"))
"""Keys of a turn: OpenAI's, ShareGPT's and Open Assistant's."""
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
"""Columns with what follows a conversation that stops at a question."""
_SYSTEM = "system"
_LOOKED_AT = 100
"""Rows by which a column is recognized: enough to tell it from others, quick for a large file."""


def conversation_column(rows: Sequence[Row]) -> str | None:
    """The column that holds a list of turns in most of the rows that are looked at, so that damaged ones are told by their
    line; None where no column does."""
    some = rows[:_LOOKED_AT]
    for name in dict.fromkeys(name for row in some for name in row.values):
        values = [value for row in some if (value := row.values.get(name))]
        if 2 * sum(map(_is_conversation, values)) > len(values):
            return name
    return None


def columns_beside(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    """The columns that are read along with a conversation's."""
    some = [row.values for row in rows[:_LOOKED_AT]]
    open_ended = [values for values in some if _is_conversation(values.get(column)) and _ends_open(values[column])]
    system = [_SYSTEM] if column != _SYSTEM and any(_is_text(values.get(_SYSTEM)) for values in some) else []
    answers = [name for name in _ANSWERS if name != column and any(_is_answer(v.get(name)) for v in open_ended)]
    return (*system, *answers[:1])


def read_turns(value: Any) -> tuple[Turn, ...]:
    """The turns of a conversation.

    Raises:
        ValueError: it is none, or has a role or a content that is not text; the message says what.
    """
    turns: list[Turn] = []
    for number, turn in enumerate(_listed(value), 1):
        _refuse_tools(number, turn)
        forms = [keys for keys in _FORMS if isinstance(turn, Mapping) and keys[0] in turn]
        form = next((keys for keys in forms if keys[1] in turn), forms[0] if forms else None)
        if form is None:
            raise ValueError(f"turn {number} has no role: {str(turn)[:60]}")
        role = ROLES.get(str(turn[form[0]]).strip().lower())
        if role is None:
            raise ValueError(f"turn {number} has the role {turn[form[0]]!r}; known are {', '.join(ROLES)}")
        if turn.get("weight") == 0:
            raise ValueError(f"turn {number} ({role}) has weight 0: turns that are shown and not learned are not read")
        content = turn.get(form[1])
        text = _text(content)
        if text is None and content and not isinstance(content, str):
            raise ValueError(f"turn {number} ({role}) has a part that is no text: {str(content)[:60]}")
        if text is None or not text.strip():
            raise ValueError(f"turn {number} ({role}) says nothing that is text")
        if role == "system" and turns:
            raise ValueError(f"turn {number} is the system's, which stands at the beginning only")
        turns.append((role, text))
    if not turns:
        raise ValueError("the conversation has no turns")
    return tuple(turns)


def row_turns(values: Mapping[str, Any], column: str) -> tuple[Turn, ...]:
    """The turns of a row: of its conversation, after the text of its column `system`, and before its answer where that has a
    column of its own.

    Raises:
        ValueError: as `read_turns`.
    """
    turns = read_turns(values.get(column))
    system = values.get(_SYSTEM)
    if column != _SYSTEM and _is_text(system) and turns[0][0] != "system":
        turns = (("system", str(system)), *turns)
    if turns[-1][0] != "assistant":
        answer = next((values[name] for name in _ANSWERS if name != column and _is_answer(values.get(name))), ())
        turns = (*turns, *((("assistant", answer),) if _is_text(answer) else read_turns(answer) if answer else ()))
    return turns


def question_turns(values: Mapping[str, Any], column: str) -> tuple[Turn, ...]:
    """The turns of a row whose conversation waits for an answer: one that stands at its end is asked for again.

    Raises:
        ValueError: as `read_turns`.
    """
    turns = row_turns(values, column)
    return (*(turns[:-1] if turns[-1][0] == "assistant" and len(turns) > 1 else turns), ("assistant", ""))


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, or such a list as JSON."""
    return bool(value) and _is_conversation(value)


def as_lines(turns: Sequence[Turn]) -> str:
    """Turns as `role: text` lines: what reports show, and by what equal rows are told."""
    return "\n".join(f"{role}: {text}" for role, text in turns)


def conversation_template(column: str) -> Template:
    """The prompt of a task of conversations."""
    return Template(place(column))


def make_conversations(column: str, split: SplitName, rows: Sequence[Row], bad: BadRows) -> list[Example]:
    """Turns the rows of one split into examples; what follows the assistant's last turn is left out, as nobody answers it.

    Args:
        bad: what happens to a row whose conversation cannot be read, or in which the assistant answers nothing.
    """
    examples: list[Example] = []
    for row in rows:
        try:
            turns = list(row_turns(row.values, column))
        except ValueError as error:
            bad.report(row.where, f"column {column!r}: {error}")
            continue
        while turns and turns[-1][0] != "assistant":
            turns.pop()
        if not any(role == "user" for role, _ in turns):
            bad.report(row.where, f"column {column!r} has no question that the assistant answers")
            continue
        target = turns[-1][1]
        fields = {**row.values, column: as_lines(turns[:-1])}
        identity = f"{split}/{len(examples)}"
        examples.append(Example(identity, fields, target=target, references=(target,), turns=tuple(turns)))
    return examples


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, str):  # csv and some parquet files hold JSON
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("the conversation is neither a list nor JSON") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"a conversation is a list of turns; this is {type(value).__name__}")
    return value


def _refuse_tools(number: int, turn: Any) -> None:
    if not isinstance(turn, Mapping):
        return
    role = str(turn.get("role", turn.get("from", ""))).strip().lower()
    if role in _TOOL_ROLES:
        raise ValueError(f"turn {number} is a tool's ({role}); conversations with tools are not learned from")
    if any(turn.get(key) for key in ("tool_calls", "function_call")):
        raise ValueError(f"turn {number} ({role}) calls a tool; conversations with tools are not learned from")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _is_conversation(value)


def _is_answer(value: Any) -> bool:
    return _is_text(value) or (bool(value) and _is_conversation(value))


def _ends_open(value: Any) -> bool:
    last = _listed(value)[-1]
    return ROLES.get(str(last.get("role", last.get("from"))).strip().lower()) != "assistant"


def _is_conversation(value: Any) -> bool:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return False
    try:
        turns = _listed(value)
    except ValueError:
        return False
    return bool(turns) and all(isinstance(t, Mapping) and any(a in t and b in t for a, b in _FORMS) for t in turns)


def _text(content: Any) -> str | None:
    """A turn's text; OpenAI also writes it as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    return None
