"""Conversations as data: a column with a list of turns, as OpenAI (`messages`) and ShareGPT (`conversations`) write it.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello. Which city?"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello. Which city?"}]}
    {"conversation": [{"human": "Hi", "assistant": "Hello. Which city?"}]}
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello. Which city?"}]}

What the assistant says last is the text to write, and what stands before it is shown; its earlier turns are learned too, calls of
tools among them. A column `system` beside a conversation is its first turn, a column `tools` lists the functions that may be
called. Calls that no words of the assistant follow are left out. Alpaca's files (`instruction`, `input`, `output`) and pairs of
texts (`prompt`, `completion`) are tables, which `columns` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, SplitName, Template, place
from dollartune.tasks.turns import FORMS, ROLES, is_conversation, listed

if TYPE_CHECKING:
    from dollartune.tasks.rows import BadRows, Row

Turn = tuple[str, str]
"""(role, text). Turns with tools have JSON as text, for the chat template to write: `tools` (the functions, before everything
else), `calls` (the assistant's message with its calls) and `tool` (what a tool answered)."""

_TOOL_ROLES = ("tool", "function", "observation", "ipython")
_CALLING_ROLES = ("tool_call", "function_call")
"""ShareGPT's: a turn whose text is the call."""
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
"""Columns with what follows a conversation that stops at a question."""
_SYSTEM, _TOOLS = "system", "tools"
_LOOKED_AT = 100
"""Rows by which a column is recognized: enough to tell it from others, quick for a large file."""


def conversation_column(rows: Sequence[Row]) -> str | None:
    """The column that holds a list of turns in most of the rows that are looked at, so that damaged ones are told by their
    line; None where no column does."""
    some = rows[:_LOOKED_AT]
    for name in dict.fromkeys(name for row in some for name in row.values):
        values = [value for row in some if (value := row.values.get(name))]
        if 2 * sum(map(is_conversation, values)) > len(values):
            return name
    return None


def columns_beside(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    """The columns that are read along with a conversation's."""
    some = [row.values for row in rows[:_LOOKED_AT]]
    open_ended = [values for values in some if is_conversation(values.get(column)) and _ends_open(values[column])]
    system = [_SYSTEM] if column != _SYSTEM and any(_is_text(values.get(_SYSTEM)) for values in some) else []
    system += [_TOOLS] if any(_functions(values.get(_TOOLS)) for values in some) else []
    answers = [name for name in _ANSWERS if name != column and any(_is_answer(v.get(name)) for v in open_ended)]
    return (*system, *answers[:1])


def read_turns(value: Any) -> tuple[Turn, ...]:
    """The turns of a conversation.

    Raises:
        ValueError: it is none, has a role or a content that is not text, or a call that cannot be read; the message says what.
    """
    turns: list[Turn] = []
    for number, turn in enumerate(listed(value), 1):
        if (with_tool := _tool_turn(number, turn)) is not None:
            if with_tool[0] == "tool" and not (turns and turns[-1][0] in ("assistant", "calls", "tool")):
                raise ValueError(f"turn {number} is a tool's, and nothing of the assistant stands before it")
            turns.append(with_tool)
            continue
        forms = [keys for keys in FORMS if isinstance(turn, Mapping) and keys[0] in turn]
        # two forms begin with `role`: the one whose text is there is meant
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
    system, functions = values.get(_SYSTEM), _functions(values.get(_TOOLS)) if column != _TOOLS else None
    if column != _SYSTEM and _is_text(system) and turns[0][0] != "system":
        turns = (("system", str(system)), *turns)
    if turns[-1][0] != "assistant":
        answer = next((values[name] for name in _ANSWERS if name != column and _is_answer(values.get(name))), ())
        turns = (*turns, *((("assistant", answer),) if _is_text(answer) else read_turns(answer) if answer else ()))
    return (("tools", json.dumps(functions, ensure_ascii=False)), *turns) if functions else turns


def question_turns(values: Mapping[str, Any], column: str) -> tuple[Turn, ...]:
    """The turns of a row whose conversation waits for an answer: one that stands at its end is asked for again.

    Raises:
        ValueError: as `read_turns`.
    """
    turns = row_turns(values, column)
    return (*(turns[:-1] if turns[-1][0] in ("assistant", "calls") and len(turns) > 1 else turns), ("assistant", ""))


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
            bad.report(row.where, f"column {column!r} has no question that the assistant answers in words")
            continue
        target = turns[-1][1]
        fields = {**row.values, column: as_lines(turns[:-1])}
        identity = f"{split}/{len(examples)}"
        examples.append(Example(identity, fields, target=target, references=(target,), turns=tuple(turns)))
    return examples


def _tool_turn(number: int, turn: Any) -> Turn | None:
    """A turn of a tool, or one that calls some, as templates read messages; None for every other.

    Raises:
        ValueError: a call that cannot be read.
    """
    if not isinstance(turn, Mapping):
        return None
    role = str(turn.get("role", turn.get("from", ""))).strip().lower()
    said = turn.get("content", turn.get("value"))
    content = _text(said)
    if role in _TOOL_ROLES:
        # results are often objects
        message = {"content": json.dumps(said, ensure_ascii=False) if content is None else content}
        message |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
        return "tool", json.dumps(message, ensure_ascii=False)
    calls = _as_object(said) if role in _CALLING_ROLES else turn.get("tool_calls") or turn.get("function_call")
    if not calls and role not in _CALLING_ROLES:
        return None
    if role in ROLES and ROLES[role] != "assistant":
        raise ValueError(f"turn {number} ({role}) calls a tool, which the assistant alone does")
    made = [_call(number, call) for call in (calls if isinstance(calls, list) else [calls])]
    said_too = "" if content is None or role in _CALLING_ROLES else content
    return "calls", json.dumps({"content": said_too, "tool_calls": made}, ensure_ascii=False)


def _call(number: int, call: Any) -> dict[str, Any]:
    # OpenAI nests it, others write name and arguments side by side
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"turn {number} calls a tool without a name: {str(call)[:60]}")
    arguments = _as_object(function.get("arguments", function.get("parameters")) or {})
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") else made


def _as_object(value: Any) -> Any:
    """What JSON says; a text that is none stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _functions(value: Any) -> list[Any] | None:
    """The functions of a column `tools`, which is a list or JSON; None where it is something else."""
    functions = _as_object(value)
    known = isinstance(functions, list) and functions and all(isinstance(one, Mapping) for one in functions)
    return functions if known else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not is_conversation(value)


def _is_answer(value: Any) -> bool:
    return _is_text(value) or (bool(value) and is_conversation(value))


def _ends_open(value: Any) -> bool:
    last = listed(value)[-1]
    role = next((last[key] for key, _ in FORMS if key in last), None)
    return ROLES.get(str(role).strip().lower()) != "assistant"


def _text(content: Any) -> str | None:
    """A turn's text; OpenAI also writes it as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    return None
