"""E2E NLG: restaurant descriptions from slot-value records (reference 001)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="e2e_nlg",
    kind="generation",
    description="Write a sentence or two about a restaurant from a record such as name[The Eagle], food[French].",
    columns=("source",),
    prompt="Describe the restaurant in a fluent text with all of these facts.\n\nFacts: {source}\n\nDescription:",
    extra_prompts=(
        "{source}\n=>",
        "Turn the data into text.\nData: {source}\nText:",
        "A guide book needs an entry for a restaurant with these properties: {source}. The entry reads:",
    ),
    target="target",
    references="references",
    merge_references=True,
    metric="rougeL",
    metrics=("rouge1", "rouge2", "bleu", "chrf"),
    max_answer_tokens=96,
    hub=HubSource(
        "tuetschek/e2e_nlg",
        revision="refs/convert/parquet",
        data_dir="default",
        splits={"train": "train", "validation": "validation", "test": "test"},
        columns={"source": "meaning_representation", "target": "human_reference"},
    ),
    citation="Novikova, Dušek and Rieser (2017), The E2E Dataset: New Challenges For End-to-End Generation.",
    licence="CC BY-SA 4.0",
    leaks=(
        "A record has several training rows, one per text; no record is in two splits. References omit or add facts "
        "in a noticeable share of rows. Score against all references of a record: against one alone, scores are "
        "much lower."
    ),
)
