"""A new study file: what was guessed, with a comment at every line that says what it may be changed to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml


class OneLine(yaml.SafeDumper):
    """Texts with line breaks in quotes on one line, as in "{text}\\n\\nMood:": otherwise a prompt is broken into four."""


OneLine.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)
COMMENTS = {
    "backbone": "a hub id, a folder, a .gguf file, or a name of `dollartune backbones ls`",
    "task": "columns, label words and prompt as guessed; `dollartune schema` lists what else may stand here",
    "methods": "any of `dollartune methods ls`, with settings as in `- lora: {rank: 8}`; a list means every value of it",
    "scales": "numbers of training rows to compare, or `all`",
    "seeds": "each seed draws its own start; with fewer than 3 the intervals say little",
    "budget": "seconds, minutes, hours, or dollars (with `price: 2.49/h` or `machine:` one of `dollartune machines ls`)",
    "search": "each method chooses rates and sizes with that money: true, false (run what is listed), or most settings to try",
}
"""Key -> what it may be changed to."""
INSIDE = {
    "prompt": "{column} stands for a column of the file",
    "label": "column with the class",
    "target": "column with the text to write",
    "label_words": "class: the word that a language model writes for it",
    "metric": "what is compared; for rare classes balanced_accuracy or f1",
    "on_bad_row": "stop, or skip (left out and counted)",
    "max_answer_tokens": "longest text to write",
    "conversation": "column with the turns of a chat",
}
"""The same inside `task:`."""


def study_text(study: Mapping[str, object], head: str, schema: Path | None) -> str:
    """The file's text.

    Args:
        study: its keys in the order in which they are written.
        head: the comment at its top.
        schema: where the JSON schema lies, for the line that editors read; None leaves it out.
    """
    lines = [*([] if schema is None else [f"# yaml-language-server: $schema={schema}"]), f"# {head}"]
    for key, value in study.items():
        lines.append(f"\n# {COMMENTS[key]}" if key in COMMENTS else "")
        text = yaml.dump({key: value}, Dumper=OneLine, sort_keys=False, allow_unicode=True, width=WIDTH)
        written = text.rstrip().splitlines()
        for line in written:
            name = line.strip().partition(":")[0]
            # of the keys right under `task:` alone: a label may be called `prompt`
            beside = key == "task" and line.startswith("  ") and line[2:3] not in (" ", "-") and name in INSIDE
            lines += [f"  # {INSIDE[name]}"] if beside else []
            lines.append(line)
    return "\n".join(lines) + "\n"


WIDTH = 10_000
"""Columns before YAML would break a line: a prompt stays in one piece, and an editor wraps it."""
