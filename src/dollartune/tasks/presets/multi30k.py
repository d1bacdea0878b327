"""Multi30k: English descriptions of photographs into German."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="multi30k",
    kind="generation",
    description="Translate a short description of a photograph from English to German.",
    columns=("source",),
    prompt="translate English to German: {source}",
    extra_prompts=(
        "English: {source}\nGerman:",
        "{source} =",
        "Translate the following sentence from English to German.\n\n{source}\n\nTranslation:",
    ),
    target="target",
    metric="bleu",
    metrics=("chrf",),
    max_answer_tokens=64,
    folders=("multi30k_en_de",),
    aliases=("multi30k_en_de",),
    hub=HubSource(
        "bentrevett/multi30k",
        splits={"train": "train", "validation": "validation", "test": "test"},
        columns={"source": "en", "target": "de"},
    ),
    citation="Elliott et al. (2016), Multi30K: Multilingual English-German Image Descriptions.",
    licence="none stated; the English captions derive from Flickr30k, for non-commercial research and education",
    leaks="Sentences are short and much alike: near-duplicates between splits are common. One reference per sentence.",
)
