"""Chart2Text: the title of a chart from its data table, prompted with "summarize:" (reference 003)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from dollartune.tasks.preset import Preset


def linear_table(table: str) -> str:
    """A table as running text: `0 Country: Russia, Expenditure: 12 1 Country: ...`.

    Args:
        table: comma-separated values with a header line.
    """
    rows = list(csv.reader(io.StringIO(table)))
    header, body = rows[0], rows[1:]
    return " ".join(
        f"{number} " + ", ".join(f"{name}: {value}" for name, value in zip(header, row, strict=False))
        for number, row in enumerate(body)
    )


def prepare(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes the table as running text."""
    return {**values, "table": linear_table(str(values["table"]))}


PRESET = Preset(
    name="chart2text_statista",
    kind="generation",
    description="Write the title of a chart from the table behind it.",
    columns=("table",),
    prompt="summarize: {table}",
    extra_prompts=(
        "Write a title for a chart of this data.\n\nData: {table}\n\nTitle:",
        "{table}\n\nThe title of this table is:",
        "Table: {table}\nTL;DR:",
    ),
    target="title",
    metric="rouge1",
    metrics=("rouge2", "rougeL", "rouge1_precision", "rouge1_recall", "bleu", "chrf"),
    max_answer_tokens=48,
    aliases=("chart2text",),
    citation="Obeid and Hoque (2020), Chart-to-Text: Generating Natural Language Descriptions for Charts.",
    licence="none stated; Statista keeps the rights in its pages, for research use only",
    leaks=(
        "The split is ours, grouped by title with figures removed, so that editions of one chart stay together; one "
        "table stands in training and in validation, under different titles. Titles name places and years that the "
        "table may not hold. Reference 003 reports precision, recall and F beside each other."
    ),
    prepare=prepare,
)
