"""AG News: topic of a news item, four classes (reference 001)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="ag_news",
    kind="classification",
    description="Topic of a news item: world, sports, business, or science and technology.",
    columns=("text",),
    prompt="Classify the news article as world, sports, business or technology.\n\nArticle: {text}\n\nTopic:",
    extra_prompts=(
        "{text}\n\nIs this piece of news about world politics, sports, business, or technology? It is about",
        "Article: {text}\nSection of the newspaper:",
        "News: {text}\nCategory (world, sports, business, technology):",
    ),
    label_words={"world": "world", "sports": "sports", "business": "business", "sci/tech": "technology"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    hub=HubSource("fancyzhx/ag_news", splits={"train": "train", "test": "test"}),
    citation="Zhang, Zhao and LeCun (2015), Character-level Convolutional Networks for Text Classification.",
    licence="none stated; the AG corpus is provided for research and other non-commercial activity",
    leaks=(
        "The hub has 120,000 training and 7,600 test rows, title and description in one text; the local copy has "
        "descriptions only (7,500 rows to train on), so its accuracies are somewhat lower."
    ),
)
