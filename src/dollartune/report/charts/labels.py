"""What was predicted: the share of each label and of "other", beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents

TRUTH = "the truth"
FURTHER = "further labels"
Mode = Literal["scored", "written"]


def shares(contents: Contents, board: Board, mode: Mode) -> dict[str, dict[str, float]]:
    """Row (the truth, then each method) -> label -> share of the test rows, means over seeds; empty where not recorded."""
    by_label = {}
    for entry in board.entries:
        counts = _counts(entry, mode)
        if sum(counts.values()):
            by_label[entry.label] = _normal(counts)
    if not by_label:
        return {}
    labels = board.labels
    truth = _truth(contents, board)
    rows = {TRUTH: truth, **by_label} if truth else by_label
    every = [*labels, *dict.fromkeys(name for row in rows.values() for name in row if name not in labels)]
    return {name: {label: row.get(label, 0.0) for label in every} for name, row in rows.items()}


def _counts(entry: BoardEntry, mode: Mode) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record in entry.records:
        breakdown = record.test.breakdown if mode == "scored" else record.test.generation.breakdown
        counts.update(breakdown)
    return counts


def _truth(contents: Contents, board: Board) -> dict[str, float]:
    """The labels that were right, from the first trial with predictions."""
    for entry in board.entries:
        for record in entry.records:
            columns = contents.results.store.outcomes(record)
            if columns is not None and columns.expected is not None:
                return _normal(Counter(columns.expected_labels()))
    return {}


def _normal(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()}


def breakdown_chart(contents: Contents, board: Board, mode: Mode) -> Any | None:
    """Stacked shares, a bar per method; None for tasks without labels, or without free generation."""
    table = _few(shares(contents, board, mode))
    if not table:
        return None
    rows = [row for name, parts in table.items() for row in _segments(name, parts)]
    order = list(next(iter(table.values())))
    known = [label for label in order if label in board.labels]
    tints = {label: look.TINTS[index % len(look.TINTS)] for index, label in enumerate(known)}
    scale = alt.Scale(domain=order, range=[tints.get(label, look.OTHER_TINT) for label in order])
    y = alt.Y("row:N", sort=list(table), title=None, axis=alt.Axis(domain=False, ticks=False))
    x = alt.X(
        "start:Q",
        title="share of the test rows",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", tickCount=5),
    )
    legend = alt.Legend(title=None, orient="bottom", symbolType="square", labelLimit=200)
    base = alt.Chart(alt.InlineData(values=rows))
    bars = base.mark_bar(height={"band": 0.78}, stroke="#ffffff", strokeWidth=0.6).encode(
        x=x, x2="end:Q", y=y,
        color=alt.Color("label:N", scale=scale, legend=legend),
        tooltip=[alt.Tooltip("row:N", title="who"), alt.Tooltip("label:N"), alt.Tooltip("share:N")],
    )  # fmt: skip
    text = base.transform_filter("datum.end - datum.start > 0.13").mark_text(color=look.ON_TINT, fontSize=10, limit=70)
    return alt.layer(bars, text.encode(x="middle:Q", y=y, text="label:N")).properties(
        width="container", height=24 * len(table)
    )


def _segments(name: str, parts: Mapping[str, float]) -> Iterable[dict[str, object]]:
    start = 0.0
    for label, share in parts.items():
        if share > 0:
            yield {
                "row": name, "label": label, "start": look.rounded(start), "end": look.rounded(start + share),
                "middle": look.rounded(start + share / 2), "share": numbers.percent(share),
            }  # fmt: skip
        start += share


def _few(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """At most twelve labels: the most frequent, and the rest as `further labels`, `other` last."""
    if not table:
        return table
    labels = list(next(iter(table.values())))
    rest = [label for label in labels if label in ("other", "(no label)")]
    named = [label for label in labels if label not in rest]
    if len(named) <= len(look.TINTS):
        kept, further = named, []
    else:
        by_size = sorted(named, key=lambda label: -max(row[label] for row in table.values()))
        # In the task's order again, by which colors are given.
        kept = [label for label in named if label in set(by_size[: len(look.TINTS) - 1])]
        further = [label for label in named if label not in kept]
    reduced = {}
    for name, row in table.items():
        parts = {label: row[label] for label in kept}
        if further:
            parts[FURTHER] = sum(row[label] for label in further)
        reduced[name] = {**parts, **{label: row[label] for label in rest}}
    return reduced
