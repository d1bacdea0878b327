"""SAMSum: summaries of messenger-like chats (reference 001)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="samsum",
    kind="generation",
    description="Summarize a chat in the third person.",
    columns=("dialogue",),
    prompt="Summarize the following conversation.\n\n{dialogue}\n\nSummary:",
    extra_prompts=(
        "{dialogue}\n\nTL;DR:",
        "Read the chat and say in one or two sentences what happens.\n\nChat:\n{dialogue}\n\nIn short:",
        "Here is a dialogue:\n{dialogue}\nWrite a short summary!\n",
    ),
    target="summary",
    metric="rougeL",
    metrics=("rouge1", "rouge2", "chrf"),
    max_answer_tokens=96,
    hub=HubSource("knkarthick/samsum", splits={"train": "train", "validation": "validation", "test": "test"}),
    citation="Gliwa et al. (2019), SAMSum Corpus: A Human-annotated Dialogue Dataset for Abstractive Summarization.",
    licence="CC BY-NC-ND 4.0: non-commercial research, no distribution of changed versions",
    leaks="Validation and test are the official splits; names and topics recur between dialogues.",
)
