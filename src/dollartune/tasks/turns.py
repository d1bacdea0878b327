"""What a conversation is in a data file: a list of turns, in the forms that are published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Role as a file writes it -> role that chat templates know."""
_TRANSCRIPTS = (("speaker", "text"), ("author", "content"))
"""Keys of a turn in transcripts, which comments and messages among people have too: only known roles tell."""
FORMS = (("role", "content"), ("from", "value"), ("role", "text"), *_TRANSCRIPTS)
"""Keys of a turn: OpenAI's, ShareGPT's, Open Assistant's, and those of transcripts."""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, or such a list as JSON."""
    # before parsing: nearly all texts of a table are none
    if not isinstance(value, str | Sequence | Mapping) or (
        isinstance(value, str) and not value.lstrip().startswith("[")
    ):
        return False
    try:
        turns = listed(value)
    except ValueError:
        return False
    return bool(turns) and all(isinstance(turn, Mapping) and any(_has(turn, form) for form in FORMS) for turn in turns)


def _has(turn: Mapping[str, Any], form: tuple[str, str]) -> bool:
    """Whether an object has a role under the form's first key, and a text or calls of tools beside it."""
    role, text = form
    if role not in turn or not any(key in turn for key in (text, "tool_calls", "function_call")):
        return False
    return form not in _TRANSCRIPTS or str(turn[role]).strip().lower() in ROLES


def listed(value: Any) -> Sequence[Any]:
    """The turns of a conversation, each an object.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str):  # csv and some parquet files hold JSON
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("the conversation is neither a list nor JSON") from None
    if isinstance(value, Mapping):
        value = _turns_of_columns(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"a conversation is a list of turns; this is {type(value).__name__}")
    if value and all(isinstance(turn, Mapping) and _is_exchange(turn) for turn in value):
        return [{"role": role, "content": text} for turn in value for role, text in turn.items()]
    return value


def _turns_of_columns(value: Mapping[str, Any]) -> Any:
    """The turns of `{"role": [..], "content": [..]}`, as `datasets` keeps a list of objects; else the value itself."""
    if not value or not all(isinstance(column, list) and column for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1 or not any(set(form) <= value.keys() for form in FORMS):
        return value
    return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]


def _is_exchange(turn: Mapping[str, Any]) -> bool:
    """Whether an object is a question and its answer under their roles: `{"human": "..", "assistant": ".."}`."""
    return len(turn) > 1 and all(str(key).lower() in ROLES and isinstance(text, str) for key, text in turn.items())
