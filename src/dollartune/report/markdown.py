"""The report as Markdown: the same sentences and tables, without charts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report import baselines, provenance, tables
from dollartune.report import serving_cost as use
from dollartune.report import text as wording
from dollartune.report.ablation import ablations
from dollartune.report.examples import samples
from dollartune.report.published import TITLE as PUBLISHED
from dollartune.report.published import published_table
from dollartune.report.spending import spent_of_budget
from dollartune.report.tables import Table

if TYPE_CHECKING:
    from dollartune.report.contents import Board, Contents
    from dollartune.report.task_facts import TaskFacts


def render_markdown(contents: Contents, facts: Mapping[str, TaskFacts]) -> str:
    """The whole report as text."""
    parts = [f"# {_text(contents.name)}", _text(wording.summary(contents))]
    parts += [f"> {_text(note)}" for note in contents.notes]
    if len(contents.boards) > 1:
        parts += ["## In short", table_as_markdown(tables.overview(contents))]
        parts += [table_as_markdown(tables.over_boards(contents.summary))] if contents.summary is not None else []
    for task in contents.tasks:
        boards = contents.of_task(task)
        parts += [f"## {_text(task)}", *_about(facts.get(task), boards[0].metric)]
        for board in boards:
            parts += _board(contents, board, facts.get(task))
        converged = tables.convergence(boards)
        parts += ["### When the validation loss was best", table_as_markdown(converged)] if converged else []
    ablated = tables.ablation(ablations(contents))
    parts += ["## What each part is worth", table_as_markdown(ablated)] if ablated else []
    published = published_table(contents)
    parts += [f"## {PUBLISHED}", table_as_markdown(published)] if published else []
    parts += _spending(contents)
    failed = tables.failures(contents)
    parts += ["## Trials that failed", table_as_markdown(failed)] if failed else []
    parts.append("## How it was run")
    parts += [
        f"- {_text(name)}: {_text(value)}"
        for name, value in (*provenance.asked(contents), *provenance.machine(contents))
    ]
    parts.append("## Words")
    parts += [f"- **{word}**: {meaning}" for word, meaning in wording.GLOSSARY]
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    """Blank lines between blocks, none within lists."""
    lines: list[str] = []
    for part in parts:
        if lines and not (part.startswith("- ") and lines[-1].startswith("- ")):
            lines.append("")
        lines.append(part)
    return "\n".join(lines) + "\n"


def _about(facts: TaskFacts | None, metric: str) -> list[str]:
    parts = []
    if facts is not None and facts.description:
        parts.append(_text(facts.description))
    parts.append(f"Score: {_text(metric)}, the {_text(wording.metric_meaning(metric))}.")
    if facts is not None and facts.leaks:
        parts.append(f"Beware: {_text(facts.leaks)}")
    return parts


def _board(contents: Contents, board: Board, facts: TaskFacts | None) -> list[str]:
    parts = [f"### {numbers.rows(board.scale).capitalize()}", f"**{_text(wording.headline(board))}**"]
    money = wording.for_the_money(board)
    parts += [_text(money)] if money else []
    parts += [f"- {_text(sentence)}" for sentence in baselines.sentences(board)]
    if board.comparison is not None:
        explanation = board.comparison.explanation
        parts += [f"How sure: {_text(explanation)}"] if explanation else []
        parts += [f"- Beware: {_text(warning)}" for warning in board.comparison.warnings]
    stopped = wording.cut_short(board)
    parts += [f"- Beware: {_text(stopped)}"] if stopped else []
    told = contents.more_money(board)
    parts += [_text(told)] if told else []
    sizes = provenance.data_sizes(board)
    parts += [f"Data: {sizes}."] if sizes else []
    parts += [_text(board.unsearched)] if board.unsearched else []
    parts += [table_as_markdown(tables.leaderboard(board)), table_as_markdown(tables.value(board))]
    parts += [
        table_as_markdown(table)
        for table in (use.requests_table(board), use.forgetting_table(board))
        if table is not None
    ]
    why_not = use.why_not(board)
    parts += [_text(why_not)] if why_not else []
    sampled = samples(contents, board, facts.inputs if facts else None)
    if sampled is not None:
        parts.append(f"Predictions of {_text(sampled.entry.label)}, seed {sampled.seed}. {sampled.how}")
        rows = tuple((s.kind, s.input or numbers.NONE, s.predicted, s.expected) for s in sampled.samples)
        parts.append(table_as_markdown(Table("Predictions", ("Kind", "Input", "Predicted", "Expected"), rows)))
    return parts


def _spending(contents: Contents) -> list[str]:
    spent = [table for table in (tables.spent_on(contents), tables.spent_by(contents)) if table is not None]
    if not spent:
        return []
    sentence = spent_of_budget(contents)
    return ["## Spent of the budget", *([_text(sentence)] if sentence else []), *map(table_as_markdown, spent)]


def table_as_markdown(table: Table) -> str:
    """A table with its notes, without its caption."""
    lines = ["| " + " | ".join(map(_cell, table.headings)) + " |"]
    lines.append("|" + "|".join("---:" if i in table.numeric else "---" for i in range(len(table.headings))) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join([*lines, *(f"\n{_text(note)}" for note in table.notes)])


def _cell(text: str) -> str:
    """One line, in which nothing ends the cell."""
    return _text(" ".join(text.split())) or " "


def _text(text: str) -> str:
    """Text that stays text: Markdown's own signs and HTML lose their meaning."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text).replace("&", "&amp;")
