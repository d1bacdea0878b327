"""Tools: functions that a model may call, and the calls that it writes.

Where the request forces a call, the answer is constrained to the function's own schema, on every model. Where the model may
choose (`auto`), its chat template must show it the tools, and calls are read from its text in the forms that models are
taught: `<tool_call>{...}</tool_call>` (Hermes, Qwen, SmolLM3), `[TOOL_CALLS] [...]` (Mistral), and bare objects (Llama 3).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.serve.limits import Refused
from dollartune.serve.schema import AllowedTools

if TYPE_CHECKING:
    from dollartune.serve.schema import ChatRequest, Tool

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolUse:
    """How an answer calls tools."""

    names: tuple[str, ...]
    """Of the functions that may be called."""
    named: str | None
    """The function that the request demands: the answer's text is its arguments."""
    schema: Mapping[str, Any] | None
    """What the answer is constrained to; None where the model may choose."""
    several: bool = True
    """Whether more than one call may come."""
    calls: tuple[Mapping[str, Any], ...] = ()
    """The schema of each function's call, as an object with its name."""

    def or_answer(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an answer is constrained to where the model may choose between calls and a text in a format."""
        return {"anyOf": [*self.calls, {"$id": "response_format", **wanted}]}


@dataclass(frozen=True)
class ToolCall:
    """One call."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""

    def entry(self) -> dict[str, object]:
        """In OpenAI's shape."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def tool_use(body: ChatRequest, template_has_tools: bool) -> ToolUse | None:
    """How a request's answer calls tools; None where it does not.

    Raises:
        Refused: a choice that names no given tool, or one that the model cannot make.
    """
    choice = body.tool_choice or "auto"
    if choice == "none" or (choice == "auto" and not body.tools):  # who may call none of no tools writes a text
        return None
    if not body.tools:
        raise Refused(400, "tool_choice needs tools", param="tool_choice")
    if len({tool.function.name for tool in body.tools}) < len(body.tools):
        raise Refused(400, "two tools have one name", param="tools")
    for tool in body.tools:
        kind = (tool.function.parameters or {}).get("type", "object")
        if "object" not in (kind if isinstance(kind, list) else [kind]):
            raise Refused(
                400, f"the arguments of {tool.function.name} are an object, not of type {kind}", param="tools"
            )
    several = body.parallel_tool_calls is not False
    allowed = body.tools
    if isinstance(choice, AllowedTools):
        allowed = [_named(one.function.name, body.tools) for one in choice.allowed_tools.tools]
        choice = choice.allowed_tools.mode
    names = tuple(tool.function.name for tool in allowed)
    calls = tuple(map(_call_schema, allowed))
    if choice == "auto":
        if not template_has_tools:
            raise Refused(
                400,
                "this model's chat template shows it no tools, so it cannot choose one; set tool_choice to `required` or to "
                "a function's name, and the answer is constrained to its schema",
                param="tool_choice",
            )
        return ToolUse(names, None, None, several, calls)
    if choice == "required":
        return ToolUse(names, None, {"anyOf": list(calls)}, several, calls)
    tool = _named(choice.function.name, body.tools)
    return ToolUse(names, tool.function.name, _arguments_schema(tool), several, calls)


def _named(name: str, tools: Sequence[Tool]) -> Tool:
    for tool in tools:
        if tool.function.name == name:
            return tool
    given = ", ".join(tool.function.name for tool in tools)
    raise Refused(400, f"tool_choice names {name!r}; the tools are {given}", param="tool_choice")


def _arguments_schema(tool: Tool) -> Mapping[str, Any]:
    # Arguments are an object also where the schema forgets to say so.
    return {"type": "object", **tool.function.parameters} if tool.function.parameters else _NO_ARGUMENTS


def _call_schema(tool: Tool) -> Mapping[str, Any]:
    # A document of its own inside the other: its references (`#/$defs/...`, as pydantic writes them) count from here. Whatever
    # name it has, as those of two tools may have one.
    arguments = {**_arguments_schema(tool), "$id": f"tool:{tool.function.name}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def read_calls(text: str, use: ToolUse) -> tuple[str, list[ToolCall]]:
    """What a text says besides, and the calls in it. Text that only looks like a call stays text."""
    if tagged := _TAGGED.findall(text):
        calls = [call for piece in tagged for call in _calls(piece, use.names)]
        rest = _TAGGED.sub("", text).strip()
    else:
        head, mark, tail = text.partition(_MISTRAL)
        calls = _calls(tail if mark else text, use.names)
        rest = head.strip() if mark else ""
    if not calls:
        return text, []
    return rest, calls if use.several else calls[:1]


def _calls(text: str, names: Sequence[str]) -> list[ToolCall]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for one in parsed if isinstance(parsed, list) else [parsed]:
        if not isinstance(one, Mapping) or one.get("name") not in names:
            return []
        # Llama 3 is taught to write `parameters`.
        arguments = one.get("arguments", one.get("parameters", {}))
        calls.append(ToolCall(one["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls
