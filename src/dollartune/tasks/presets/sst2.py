"""SST-2: sentiment of sentences and phrases from film reviews."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="sst2",
    kind="classification",
    description="Sentiment of a sentence or phrase from a film review, positive or negative.",
    columns=("text",),
    prompt="Review: {text}\nIs the sentiment of this review positive or negative?\nAnswer:",
    extra_prompts=(
        "{text} All in all, the film was",
        "Sentence: {text}\nSentiment:",
        'Someone wrote about a film: "{text}" Their opinion is',
    ),
    label_words={"negative": "negative", "positive": "positive"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    hub=HubSource("stanfordnlp/sst2", splits={"train": "train", "test": "validation"}, columns={"text": "sentence"}),
    citation=(
        "Socher et al. (2013), Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank; "
        "in the form of GLUE (Wang et al., 2019)."
    ),
    licence="none stated for the treebank, which GLUE distributes",
    leaks=(
        "Test is the GLUE development split (872 sentences; official test labels are withheld). Training rows are "
        "mostly phrases cut from sentences: on the hub, validation rows cut from training share phrases with it, so "
        "its loss looks better than it is; the local copy keeps phrases of validation sentences out of training."
    ),
)
