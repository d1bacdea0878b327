"""IMDB: sentiment of whole film reviews, asked in the Alpaca format (reference 002)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="imdb",
    kind="classification",
    description="Sentiment of a film review, positive or negative.",
    columns=("text",),
    prompt=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDecide whether the sentiment of the following movie review is positive or negative.\n\n"
        "### Input:\n{text}\n\n### Response:"
    ),
    extra_prompts=(
        "Review: {text}\n\nIs this movie review positive or negative?\nAnswer:",
        "{text}\n\nOverall, the reviewer's opinion of the film is",
        "Movie review: {text}\nSentiment:",
    ),
    label_words={"negative": "negative", "positive": "positive"},
    label_values={"neg": "negative", "pos": "positive"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    hub=HubSource("stanfordnlp/imdb", splits={"train": "train", "test": "test"}),
    citation="Maas et al. (2011), Learning Word Vectors for Sentiment Analysis.",
    licence="none stated; the authors ask to be cited, the texts belong to their writers",
    leaks=(
        "The two official splits share no film, but validation is cut from training and shares films with it. "
        "Reviews are long (median about 170 words, some over 1,000): truncation changes the task. The star rating "
        "in the local copy gives the label away and is kept from prompts."
    ),
)
