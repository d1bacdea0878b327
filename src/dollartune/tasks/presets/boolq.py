"""BoolQ: yes/no questions with a Wikipedia passage that answers them (reference 000)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset


def prepare(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drops the question mark that some rows have, because the prompt writes one."""
    return {**values, "question": str(values["question"]).rstrip(" ?")}


PRESET = Preset(
    name="boolq",
    kind="classification",
    description="Yes/no question about a passage, answer from the passage.",
    columns=("question", "passage"),
    prompt=(
        "Using information in the passage, answer the following question: {question}? "
        "### Passage: {passage} ### Answer:"
    ),
    extra_prompts=(
        "{passage}\nQuestion: {question}?\nAnswer (yes or no):",
        "Read the passage and say yes or no.\n\nPassage: {passage}\n\nQuestion: {question}?\n\nAnswer:",
        'Passage: {passage}\nAfter reading this, my answer to "{question}?" is',
    ),
    label_words={"no": "No", "yes": "Yes"},
    label="answer",
    label_values={"true": "yes", "false": "no"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    max_answer_tokens=8,
    group="passage",
    hub=HubSource("google/boolq", splits={"train": "train", "validation": "validation"}),
    citation=(
        "Clark et al. (2019), BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions; "
        "SuperGLUE task (Wang et al., 2019)."
    ),
    licence="CC BY-SA 3.0",
    leaks=(
        "About 62 % of the answers are yes: compare with that, not with 50 %. The official test labels are "
        "withheld, so validation and test both come from the official development split, divided by passage. In the "
        "local copy, train_extra comes from the same development split: a model trained on it must not be scored on "
        "the whole of it."
    ),
    prepare=prepare,
)
