"""Figures of the page: a caption, a text for those who cannot see it, and a place where the chart will be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.report.elements import Html, tag
from dollartune.report.learning_speed import against_all, converged

if TYPE_CHECKING:
    from dollartune.report.contents import Board


class Figures:
    """Collects chart specifications while the page is put together."""

    def __init__(self) -> None:
        self.specs: dict[str, object] = {}
        self.datasets: dict[str, object] = {}
        """Data by the hash of their content, as altair names them: what several charts show is in the page once."""

    def figure(self, chart: Any | None, title: str, meaning: str, alternative: str) -> Html:
        """A figure; nothing where there is no chart.

        Args:
            title: what the chart shows.
            meaning: how to read it.
            alternative: its content in words, for screen readers.
        """
        if chart is None:
            return Html("")
        name = f"chart-{len(self.specs) + 1}"
        spec = chart.to_dict(validate=False)  # the tests validate; it takes most of the time
        # An address that the page would never ask; 60 bytes in each chart.
        spec.pop("$schema", None)
        datasets = spec.pop("datasets")
        self.datasets |= datasets
        # Vega ignores `usermeta`; the page's script puts the named data back in before it draws.
        spec["usermeta"] = {"datasets": list(datasets)}
        if "facet" in spec:
            field = spec["facet"]["field"]
            # The page's script makes as many columns as fit, for which it must know how many panels there are.
            spec["usermeta"]["panels"] = len({row[field] for row in datasets[spec["data"]["name"]]})
        self.specs[name] = spec
        plot = tag("div", class_="plot", data_chart=name, role="img", aria_label=f"{title}. {alternative}")
        return tag("figure", tag("figcaption", tag("strong", title), meaning), plot)


def cost_in_words(board: Board) -> str:
    """The Pareto front, cheapest first."""
    steps = [f"{entry.label}: {board.cost_text(entry)}, {numbers.score(entry.score)}" for entry in board.front]
    return f"Not beaten in both cost and score, cheapest first: {'; '.join(steps)}."


def parameters_in_words(board: Board) -> str:
    """Trained parameters and score, fewest first."""
    entries = sorted(board.entries, key=lambda entry: entry.trainable)
    return "; ".join(f"{e.label}: {numbers.short_count(e.trainable)}, {numbers.score(e.score)}" for e in entries) + "."


def curves_in_words(board: Board) -> str:
    """Best validation loss of each method."""
    losses = {e.label: e.mean_training("best_validation_loss") for e in board.entries}
    said = [f"{label}: {loss:.3f}" for label, loss in losses.items() if loss is not None]
    return f"Best validation loss, mean over seeds: {'; '.join(said)}."


def shares_in_words(table: dict[str, dict[str, float]]) -> str:
    """The most frequent label of each row."""
    most = {row: max(by_label, key=lambda label: by_label[label]) for row, by_label in table.items()}
    return (
        "Most frequent: "
        + "; ".join(f"{row}: {label}, {numbers.percent(table[row][label])}" for row, label in most.items())
        + "."
    )


def scales_in_words(boards: Sequence[Board]) -> str:
    """The best method at each scale."""
    first = {b.title: numbers.listed([entry.label for entry in b.highest]) for b in boards}
    return "; ".join(f"{numbers.rows(b.scale)}: {first[b.title]} {numbers.score(b.best.score)}" for b in boards) + "."


def convergence_in_words(boards: Sequence[Board]) -> str:
    """The fastest method at each scale."""
    by_board = [(board, converged(board)) for board in boards]
    parts = [
        f"{numbers.rows(b.scale)}: {rows[0].entry.label} first, after {numbers.seconds(rows[0].seconds)}"
        for b, rows in by_board
        if rows
    ]
    return "; ".join(parts) + "."


def speedup_in_words(boards: Sequence[Board]) -> str:
    """Full tuning's speed-up against the mean of all others at each scale."""
    by_board = [(board, against_all(board)) for board in boards]
    return (
        "; ".join(f"{numbers.rows(b.scale)}: {numbers.percent(share)}" for b, share in by_board if share is not None)
        + "."
    )
