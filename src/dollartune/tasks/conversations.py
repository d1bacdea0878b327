"""Conversations as data: a column with a list of turns, as OpenAI (`messages`) and ShareGPT (`conversations`) write it.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello. Which city?"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello. Which city?"}]}

What the assistant says last is the text to write, and what stands before it is shown; its earlier turns are learned too.
Alpaca's files (`instruction`, `input`, `output`) and pairs (`prompt`, `completion`) are tables, which `columns` reads.
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
_FORMS = (("role", "content"), ("from", "value"))
"""Keys of a turn: OpenAI's, and ShareGPT's."""
_LOOKED_AT = 100
"""Rows by which a column is recognized: enough to tell it from others, quick for a large file."""


def conversation_column(rows: Sequence[Row]) -> str | None:
    """The column that holds a list of turns in every row that is looked at; None where no column does."""
    some = rows[:_LOOKED_AT]
    for name in dict.fromkeys(name for row in some for name in row.values):
        values = [row.values.get(name) for row in some]
        if any(_is_conversation(value) for value in values) and all(
            not value or _is_conversation(value) for value in values
        ):
            return name
    return None


def read_turns(value: Any) -> tuple[Turn, ...]:
    """The turns of a conversation.

    Raises:
        ValueError: it is none, or has a role or a content that is not text; the message says what.
    """
    turns: list[Turn] = []
    for number, turn in enumerate(_listed(value), 1):
        form = next((keys for keys in _FORMS if isinstance(turn, Mapping) and keys[0] in turn), None)
        if form is None:
            raise ValueError(f"turn {number} has no role: {str(turn)[:60]}")
        role = ROLES.get(str(turn[form[0]]).strip().lower())
        if role is None:
            raise ValueError(f"turn {number} has the role {turn[form[0]]!r}; known are {', '.join(ROLES)}")
        text = _text(turn.get(form[1]))
        if text is None or not text.strip():
            raise ValueError(f"turn {number} ({role}) says nothing that is text")
        if role == "system" and turns:
            raise ValueError(f"turn {number} is the system's, which stands at the beginning only")
        turns.append((role, text))
    if not turns:
        raise ValueError("the conversation has no turns")
    return tuple(turns)


def question_turns(value: Any) -> tuple[Turn, ...]:
    """The turns of a conversation that waits for an answer: an answer that stands at its end is asked for again.

    Raises:
        ValueError: as `read_turns`.
    """
    turns = read_turns(value)
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
            turns = list(read_turns(row.values.get(column)))
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
