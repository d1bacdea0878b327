"""A tuned model in use: what a request costs, and what was forgotten of general text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report.tables import Table

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry


def measured(board: Board) -> bool:
    """Whether anything of it was measured."""
    return bool(requests(board) or forgetting(board))


def requests(board: Board) -> list[BoardEntry]:
    """Methods with a measured request, cheapest first."""
    with_cost = [entry for entry in board.entries if entry.mean_measure("inference", "seconds") is not None]
    return sorted(with_cost, key=lambda entry: entry.mean_measure("inference", "seconds") or 0.0)


def forgetting(board: Board) -> list[BoardEntry]:
    """Tuned methods with a measured loss on general text, the one that forgot least first."""
    with_loss = [entry for entry in board.entries if entry.forgotten]
    return sorted(with_loss, key=lambda entry: fmean(entry.forgotten))


def requests_table(board: Board) -> Table | None:
    """Tokens, seconds and dollars of a request; None where not measured."""
    entries = requests(board)
    if not entries:
        return None
    priced = any(entry.request_dollars is not None for entry in entries)
    dearest = max((entry.request_dollars or 0.0 for entry in entries), default=0.0)
    # Of a million where a thousand cost less than a cent: amounts that a person can compare.
    many = 1_000 if dearest >= 0.01 else 1_000_000
    cheapest = entries[0].mean_measure("inference", "seconds") or 0.0
    headings = [
        "Method",
        "Tokens it reads",
        "Alone",
        "In batches",
        *([f"{many:,} requests"] if priced else []),
        "Against the cheapest",
    ]
    rows = []
    for entry in entries:
        seconds = entry.mean_measure("inference", "seconds") or 0.0
        row = [
            entry.label, numbers.count(entry.mean_measure("inference", "prompt_tokens")),
            numbers.short_seconds(entry.mean_measure("inference", "alone_seconds")), numbers.short_seconds(seconds),
        ]  # fmt: skip
        each = entry.request_dollars
        row += [numbers.dollars(None if each is None else each * many / 1_000)] if priced else []
        row.append(f"{numbers.ratio(seconds / cheapest)} ×" if cheapest else numbers.NONE)
        rows.append(tuple(row))
    size = int(max(entry.mean_measure("inference", "requests") or 1 for entry in entries))
    notes = (
        f"Measured on {size} test rows, the same for every method: one by one, and as a batch of {size}, on the machine "
        "that ran the study. Tokens: the request as the method asks it, with solved examples and virtual tokens.",
        "LoRA and others that can be merged into the weights then cost what the bare backbone costs.",
    )
    return Table(
        f"{board.title}: what a request costs", tuple(headings), tuple(rows), frozenset(range(1, len(headings))),
        tuple(entry.series for entry in entries), notes=notes,
    )  # fmt: skip


def forgetting_table(board: Board) -> Table | None:
    """Loss on general text before and after tuning; None where not measured."""
    entries = forgetting(board)
    if not entries:
        return None
    rows = []
    for entry in entries:
        before, after = entry.mean_measure("forgetting", "before"), entry.mean_measure("forgetting", "after")
        change = fmean(entry.forgotten)
        # A range and no interval: two or three seeds give none worth the name.
        seeds = numbers.change_span(min(entry.forgotten), max(entry.forgotten)) if len(entry.forgotten) > 1 else ""
        text = numbers.change(change)
        rows.append(
            (
                entry.label, numbers.score(before), numbers.score(after),
                f"{text} ({seeds})" if seeds and seeds != text else text, numbers.score(entry.score),
            )
        )  # fmt: skip
    notes = (
        "How surprised the model is by general text, in nats per token: a rise is what tuning for this task cost elsewhere. "
        "In parentheses the range over seeds.",
        "Removing an adapter restores the backbone; full tuning cannot be undone.",
    )
    return Table(
        f"{board.title}: what was forgotten", ("Method", "Loss before", "Loss after", "Change", board.metric),
        tuple(rows), frozenset({1, 2, 3, 4}), tuple(entry.series for entry in entries), notes=notes,
    )  # fmt: skip


def why_not(board: Board) -> str | None:
    """Of which methods the cost of a request or forgetting was not measured, and why; None where they were, or nobody asked."""
    asked = (("inference", "The cost of a request", requests(board)), ("forgetting", "Forgetting", forgetting(board)))
    return " ".join(said for one in asked if (said := _why_not(board, *one))) or None


def _why_not(board: Board, what: str, called: str, those: Sequence[BoardEntry]) -> str:
    missing = [entry for entry in board.entries if entry not in those and entry.reason(what)]
    # The same reason with other figures for each method is said once.
    kinds = {re.sub(r"[\d.]+", "", str(entry.reason(what))): str(entry.reason(what)) for entry in reversed(missing)}
    of_whom = f" of {numbers.listed([entry.label for entry in missing])}" if those else ""
    return f"{called} was not measured{of_whom}: {'; '.join(reversed(kinds.values()))}." if missing else ""


def requests_in_words(entries: Sequence[BoardEntry]) -> str:
    """Seconds of a request, cheapest first."""
    said = [f"{e.label}: {numbers.short_seconds(e.mean_measure('inference', 'seconds'))}" for e in entries]
    return "; ".join(said) + "."


def forgetting_in_words(entries: Sequence[BoardEntry]) -> str:
    """Changes of the loss, least first."""
    return "; ".join(f"{e.label}: {numbers.change(fmean(e.forgotten))}" for e in entries) + "."
