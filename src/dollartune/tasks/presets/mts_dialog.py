"""MTS-Dialog: a section of a clinical note from a talk between doctor and patient."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="mts_dialog",
    kind="generation",
    description="Write a named section of a clinical note from a talk between doctor and patient.",
    columns=("section", "dialogue"),
    prompt=(
        "Summarize the conversation between doctor and patient as section {section} of a clinical note.\n\n"
        "{dialogue}\n\nNote:"
    ),
    extra_prompts=(
        "{dialogue}\n\nClinical note, section {section}:",
        "Talk:\n{dialogue}\n\nWhat a doctor would write under {section}:",
    ),
    target="summary",
    metric="rouge1",
    metrics=("rouge2", "rougeL", "chrf"),
    max_answer_tokens=160,
    hub=HubSource(
        "har1/MTS_Dialogue-Clinical_Note",
        splits={"train": "train"},
        columns={"section": "section_header", "summary": "section_text"},
    ),
    citation="Ben Abacha et al. (2023), An Empirical Study of Clinical Note Generation from Doctor-Patient Encounters.",
    licence="CC BY 4.0",
    leaks=(
        "A small set: 200 test rows, targets from one word to a long paragraph. The hub copy holds the official "
        "training and validation rows in one split, so its test rows, cut by us, are not the official ones. Not for "
        "clinical use."
    ),
)
