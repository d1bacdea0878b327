"""Sentences on the methods against what every method should beat: the majority class, words, the untuned model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.methods.registry import methods

if TYPE_CHECKING:
    from dollartune.methods.base import Reference
    from dollartune.report.contents import Board, BoardEntry
    from dollartune.study.results import Results

CALLED: dict[Reference, str] = {"majority": "the majority class", "words": "tf-idf", "untuned": "the untuned model"}
"""What a baseline is called in sentences."""
HUNDREDTH = 0.01
"""Below this share of a method's cost the digits say nothing: it is called less than a hundredth."""


def role(entry: BoardEntry) -> Reference | None:
    """Which of the standard comparisons a baseline is; None where its method is not installed here."""
    name = str(entry.records[0].trial.methods[0]["method"]) if entry.records[0].trial.methods else entry.method
    known = methods().get(name)
    return known.reference if known is not None else None


def called(entry: BoardEntry) -> str:
    """`tf-idf`; its label where it is no standard comparison."""
    kind = role(entry)
    return CALLED.get(kind, entry.label) if kind is not None else entry.label


def of_role(board: Board, kind: Reference) -> BoardEntry | None:
    """The baseline of a board that is this comparison."""
    return next((entry for entry in board.baselines if role(entry) == kind), None)


def at_chance(board: Board) -> tuple[BoardEntry, ...]:
    """Methods that were not shown to be above the majority class; empty where that is not known."""
    majority = of_role(board, "majority")
    if majority is None or board.comparison is None:
        return ()
    not_above = {one.method for one in board.comparison.held_against(majority.label) if not one.above}
    return tuple(entry for entry in board.entries if entry.label in not_above)


def nobody_above_chance(board: Board) -> bool:
    """Whether the comparison finds nothing: no method has learned anything of the rows that the test could show."""
    return bool(board.compared) and len(at_chance(board)) == len(board.compared)


def sentences(board: Board) -> list[str]:
    """How the methods stand against each baseline: one sentence on those below, one on those not above."""
    if board.comparison is None:
        return []
    said = []
    for baseline in board.baselines:
        name, score = called(baseline), numbers.score(baseline.score)
        held = board.comparison.held_against(baseline.label)
        below = [one.method for one in held if one.below]
        level = [one.method for one in held if not one.above and not one.below]
        if below:
            said.append(f"Below {name} ({score}): {numbers.listed(below)}.")
        if not level:
            continue
        if role(baseline) == "majority":
            said.append(f"Not shown to be above {name} ({score}): {numbers.listed(level)}.")
        else:
            share = _share(board, baseline, level)
            said.append(f"{_capital(name)} ({score}) may do as well here as {numbers.listed(level)}{share}.")
    return said


def baseline_sentences(results: Results, key: tuple[str, int | None]) -> list[str]:
    """`sentences` of the board of a (task, scale)."""
    from dollartune.report.contents import collect

    return [text for board in collect(results).boards if (board.task, board.scale) == key for text in sentences(board)]


def marks(board: Board, entry: BoardEntry) -> list[str]:
    """Baselines that a method is not clearly above, in words for a table's cell."""
    if board.comparison is None:
        return []
    said = []
    for baseline in board.baselines:
        held = [one for one in board.comparison.held_against(baseline.label) if one.method == entry.label]
        for one in held:
            if one.below:
                said.append(f"below {called(baseline)}")
            elif not one.above:
                said.append(f"not above {called(baseline)}")
    return said


def _share(board: Board, baseline: BoardEntry, labels: list[str]) -> str:
    """For which part of the money of each of these methods, where it costs less than all of them."""
    costs = [board.cost(entry) for entry in board.entries if entry.label in labels]
    if not costs or board.cost(baseline) >= min(costs):
        return ""
    least, most = board.cost(baseline) / max(costs), board.cost(baseline) / min(costs)
    what = "money" if board.priced else "time"
    if most < HUNDREDTH:
        return f" for less than a hundredth of the {what}"
    low, high = numbers.percent(least), numbers.percent(most)
    share = high if low == high else f"at most {high}" if least < HUNDREDTH else f"{low} to {high}"
    return f" for {share} of the {what}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
