"""Chart2Text: the text published beside a chart, from its title and data table."""

from __future__ import annotations

from dataclasses import replace

from dollartune.tasks.presets import chart2text_statista

PRESET = replace(
    chart2text_statista.PRESET,
    name="chart2text_caption",
    description="Write the text beside a chart from its title and the table behind it.",
    folders=("chart2text_statista",),
    aliases=(),
    columns=("title", "table"),
    prompt="summarize: {title} {table}",
    extra_prompts=(
        "Describe the chart in a short paragraph.\n\nTitle: {title}\nData: {table}\n\nDescription:",
        "{title}\n{table}\n\nThis chart shows",
    ),
    target="caption",
    metric="rougeL",
    metrics=("rouge1", "rouge2", "bleu", "chrf"),
    max_answer_tokens=160,
    leaks=(
        "The split is ours, grouped by title with figures removed. Captions often tell what is not in the table "
        "(other years, causes), so no model can write them fully."
    ),
)
