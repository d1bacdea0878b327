"""What each part of a method is worth: its score without the part, less the score of the whole method.

Trials of an ablation carry `ablation: {of: label of the whole, name: drop self-attention}`.

Source: reference 001, section 3.3 (layers and modules left out of LoRA and (IA)3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents


@dataclass(frozen=True)
class AblationRow:
    """One part left out, on one board."""

    board: Board
    of: str
    name: str
    entry: BoardEntry
    whole: BoardEntry
    low: float | None
    high: float | None
    """Paired 95 % interval of the change; None without predictions."""

    @property
    def change(self) -> float:
        """Below zero: the part helps."""
        return self.entry.score - self.whole.score

    @property
    def sure(self) -> bool:
        """Whether the change is more than luck explains."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def share(self) -> float | None:
        """Trained parameters that are left, as a share of the whole method's."""
        return self.entry.trainable / self.whole.trainable if self.whole.trainable else None


def ablations(contents: Contents) -> list[AblationRow]:
    """All ablations whose whole method has results on the same board."""
    from dollartune.stats import difference_interval

    rows = []
    for board in contents.boards:
        for entry in board.entries:
            if not entry.ablation:
                continue
            whole = _whole(board, entry, entry.ablation.of)
            if whole is None:
                continue
            without, complete = contents.results.outcomes(entry.records), contents.results.outcomes(whole.records)
            low = high = None
            # Paired only where both have answered the same rows; else the change stands without an interval.
            if without is not None and complete is not None and without.examples == complete.examples:
                interval = difference_interval(without, complete)
                low, high = interval.low, interval.high
            rows.append(AblationRow(board, whole.label, entry.ablation.name, entry, whole, low, high))
    names, labels = _order(contents), [entry.label for board in contents.boards for entry in board.entries]
    return sorted(
        rows,
        key=lambda row: (
            contents.boards.index(row.board), contents.series.index(row.whole.series), labels.index(row.of),
            names.index(row.name) if row.name in names else len(names),
        ),
    )  # fmt: skip


def _order(contents: Contents) -> list[str]:
    """Names of the changes as the study file lists them."""
    asked = contents.settings.ablations if contents.settings is not None else None
    if asked is None:
        return []
    return [*asked.layers, *(f"drop {role}" for role in asked.drop), *(f"only {where}" for where in asked.where)]


def _whole(board: Board, entry: BoardEntry, label: str) -> BoardEntry | None:
    """The method that an ablation is of; among several backbones, on the same one."""
    same = [other for other in board.entries if other.backbone == entry.backbone and not other.ablation]
    # Among several backbones a label ends with its backbone's name, which an ablation's `of` has not.
    return next((other for other in same if other.label == label or other.label.startswith(f"{label} @ ")), None)
