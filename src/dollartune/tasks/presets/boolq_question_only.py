"""BoolQ without the passage: what a model remembers, and whether it learns to answer in the format."""

from __future__ import annotations

from dataclasses import replace

from dollartune.tasks.presets import boolq

PRESET = replace(
    boolq.PRESET,
    name="boolq_question_only",
    description="Yes/no question of general knowledge, without a passage.",
    columns=("question",),
    prompt="Please answer the following question with yes or no: {question}?\n\nAnswer:",
    extra_prompts=(
        "Question: {question}?\nAnswer:",
        "{question}? Yes or no:",
        "Q: Is the answer yes or no? {question}?\nA:",
    ),
    group=None,
    leaks=(
        "Without the passage small models stay near the majority rate (about 62 % yes). Its training questions are "
        "those of boolq's training split, passages apart: do not train on one and test on the other's training "
        "rows."
    ),
)
