"""Financial PhraseBank: sentiment of financial news from an investor's view (reference 003)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="financial_phrasebank",
    kind="classification",
    description="Sentiment of a sentence of financial news for an investor: positive, neutral or negative.",
    columns=("text",),
    prompt="Sentence: {text}\nWhat is the sentiment for an investor: negative, neutral or positive?\nSentiment:",
    extra_prompts=(
        "{text}\nFor the company's shareholders this news is",
        "Classify the financial news as negative, neutral or positive.\n\nNews: {text}\n\nClass:",
        "News: {text}\nSentiment:",
    ),
    label_words={"negative": "negative", "neutral": "neutral", "positive": "positive"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    aliases=("phrasebank",),
    hub=HubSource(
        "takala/financial_phrasebank",
        revision="refs/convert/parquet",
        data_dir="sentences_50agree",
        splits={"train": "train"},
        columns={"text": "sentence"},
    ),
    citation="Malo et al. (2014), Good Debt or Bad Debt: Detecting Semantic Orientations in Economic Texts.",
    licence="CC BY-NC-SA 3.0: non-commercial",
    leaks=(
        "There is no official split; ours is random. The same company report occurs with other figures, so near- "
        "duplicates can stand on both sides. These are the sentences on which at least half of the annotators "
        "agree; published figures on the all-agree subset are several points higher. About 60 % are neutral."
    ),
)
