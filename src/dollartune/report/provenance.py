"""How the study was run: settings, versions, machine, data sizes. Names and values, ready to be listed."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.budget.prices import price_note
from dollartune.report.text import backbone_name

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry, Contents

Facts = list[tuple[str, str]]


def machine(contents: Contents) -> Facts:
    """Versions and devices; several values where the study ran on several."""
    environments = [record.environment for record in contents.results.records]
    versions: dict[str, dict[str, None]] = {}
    for environment in environments:
        for name, version in {**environment.versions, "python": environment.python}.items():
            if version:
                # A dict as a set that keeps its order.
                versions.setdefault(name, {})[version] = None
    facts = [("machine", _values(environment.device for environment in environments))]
    facts.append(("threads", _values(environment.threads for environment in environments)))
    facts += [(f"{name} version", ", ".join(used)) for name, used in versions.items()]
    prices = {record.cost.price_per_hour for record in contents.results.records}
    facts.append(("price", ", ".join(f"{numbers.dollars(p)} an hour" if p else "none given" for p in sorted(prices))))
    budget = None if contents.settings is None else contents.settings.budget
    if budget is not None:
        facts.append(("where the price is from", price_note(budget.machine, budget.price, datetime.date.today()) or ""))
    return [(name, value) for name, value in facts if value]


def asked(contents: Contents) -> Facts:
    """What the study file asked for."""
    settings = contents.settings
    facts: Facts = [("backbone", backbone_name(contents))]
    totals = {entry.total for board in contents.boards for entry in board.entries if entry.total}
    if totals:
        facts.append(("parameters of the backbone", ", ".join(numbers.count(total) for total in sorted(totals))))
    if settings is None:
        return facts
    training, evaluation = settings.training, settings.evaluation
    facts.append(("seeds", ", ".join(map(str, settings.seeds))))
    facts.append(("data seed", str(settings.data_seed)))
    facts += [(f"training: {_words(name)}", _value(value)) for name, value in training.model_dump().items()]
    facts += [(f"evaluation: {_words(name)}", _value(value)) for name, value in evaluation.model_dump().items()]
    for backbone in settings.backbones:
        name = numbers.name_of(backbone.name)
        facts += [
            (f"{name}: {_words(key)}", _value(value)) for key, value in backbone.model_dump(exclude={"name"}).items()
        ]
    return facts


def data_sizes(board: Board) -> str:
    """100 train, 500 validation, 500 test rows."""
    data = board.data
    if data.train is None:
        return ""
    text = f"{data.train:,} train, {data.validation or 0:,} validation, {data.test or 0:,} test rows"
    scored = board.test_rows[1]
    text += f", of which the first {scored:,} were scored" if scored and scored < (data.test or 0) else ""
    cut = [record.data.shortened or 0 for record in board.best.records]  # seeds may have rows of their own
    if not max(cut):
        return text
    how_many = f"{min(cut):,} to {max(cut):,}, by seed," if min(cut) < max(cut) else f"{max(cut):,}"
    return f"{text}; {how_many} of them {'was' if how_many == '1' else 'were'} too long and cut"


def modules_in_words(entry: BoardEntry) -> list[tuple[str, int, int]]:
    """Where an adapter sits: (place without layer numbers, how many of them, trained parameters there)."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for name, count in entry.modules.items():
        # A number between dots is a layer's; that of `fc1` belongs to the name.
        path = re.sub(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", "*", name)
        counts[path] += 1
        parameters[path] += count
    return [(path, counts[path], parameters[path]) for path in counts]


def modules_sentence(entry: BoardEntry) -> str:
    """The same as one line: 5 x layers.*.self_attn.q (2,560)."""
    parts = [f"{many} × {path} ({count:,})" for path, many, count in modules_in_words(entry)]
    return "; ".join(parts)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return "by default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _values(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))
