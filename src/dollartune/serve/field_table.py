"""What the server takes of OpenAI's request fields, as the table of docs/serving.md.

    python -m dollartune.serve.field_table

Apart from `fields`, which the models of `schema` import: this reads both.
"""

from __future__ import annotations

import json
from typing import Any

from dollartune.serve.fields import CHAT, COMPLETION
from dollartune.serve.schema import ChatRequest, CompletionRequest


def table() -> list[str]:
    """The lines of docs/serving.md's table: address, field, what becomes of it."""

    def shown(value: Any) -> str:
        return f"`{json.dumps(value)}`"

    rows: dict[str, dict[str, str]] = {}
    for address, model, neutral in (("completions", CompletionRequest, COMPLETION), ("chat", ChatRequest, CHAT)):
        for name in model.model_fields:
            rows.setdefault(name, {})[address] = "honoured"
        for name, field in neutral.items():
            if not field.values:
                text = f"taken: {field.reason}"
            else:
                # `object()` stands for no value at all (see `fields`).
                values = [shown(value) for value in field.values if type(value) is not object]
                text = f"{' or '.join([*values, 'null'])} taken; else 400: {field.reason}"
            rows.setdefault(name, {})[address] = text
    missing = "400: no such field"
    lines = ["| field | /v1/completions | /v1/chat/completions |", "|---|---|---|"]
    for name, said in sorted(rows.items()):
        lines.append(f"| `{name}` | {said.get('completions', missing)} | {said.get('chat', missing)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
