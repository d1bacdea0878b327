"""Typed rows of the published tables.

A table is kept as it was printed: `columns` and `rows`, each with the fields it fixes, and `values` at their crossings.
Each value becomes one `Finding`, whose fields come from the table's `common`, then its column, then its row.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dollartune.errors import UserError, unknown_name

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """A document."""

    key: str
    """As the tables cite it: `000` to `004`."""
    title: str
    authors: str
    year: int
    machine: str | None = None
    """Row of `budget/machines.yaml`; None if not named."""
    url: str | None = None
    note: str = ""

    @property
    def citation(self) -> str:
        return f"{self.authors}: {self.title}, {self.year}" + (f", {self.url}" if self.url else "")


@dataclass(frozen=True)
class Finding:
    """One number of a published table."""

    table: str
    """For example `001.table1`."""
    source: str
    method: str
    """A registered name, or `majority_class`."""
    model: str
    data: str
    task_kind: str
    """classification, generation, image_classification, any."""
    metric: str
    value: float
    n_examples: int | None = None
    """Training examples; None where it has no meaning."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    machine: str | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One table, with its findings in printed order."""

    id: str
    title: str
    source: Source
    findings: tuple[Finding, ...]
    note: str = ""

    @property
    def citation(self) -> str:
        return f"reference {self.source.key}, {self.title}"


@dataclass(frozen=True)
class Claim:
    """What a source says in words."""

    key: str
    source: str
    section: str
    about: str
    """time, memory, quality, serving or data."""
    methods: tuple[str, ...]
    statement: str

    @property
    def citation(self) -> str:
        return f"reference {self.source}, {self.section}"


@dataclass(frozen=True)
class Formula:
    """A printed formula of trainable parameters."""

    method: str
    expression: str
    source: str

    def count(self, **symbols: int) -> int:
        """Its value, for example `count(L=24, d_h=1024, d_m=64)`.

        Raises:
            UserError: a symbol of the formula is missing.
        """
        return _evaluate(ast.parse(self.expression, mode="eval").body, symbols, self)


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


def _evaluate(node: ast.expr, symbols: Mapping[str, int], formula: Formula) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in symbols:
            raise UserError(f"the formula of {formula.method}, {formula.expression}, needs {node.id}.")
        return symbols[node.id]
    # Walked by hand, and not by `eval`: formulas are data, and data must not run code.
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _evaluate(node.left, symbols, formula), _evaluate(node.right, symbols, formula)
        return _OPERATIONS[type(node.op)](left, right)
    raise UserError(f"the formula of {formula.method} is no arithmetic: {formula.expression}")


def _load(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf8"))


@cache
def sources() -> dict[str, Source]:
    """The documents by key."""
    return {key: Source(key, **row) for key, row in _load(FOLDER / "sources.yaml").items()}


def _table(raw: Mapping[str, Any]) -> PublishedTable:
    common = {"source": raw["source"], "table": raw["id"], **raw.get("common", {})}
    rows: list[Finding] = []
    for row in raw["rows"]:
        values, of_row = row["values"], {key: value for key, value in row.items() if key != "values"}
        if len(values) != len(raw["columns"]):
            raise UserError(f"{raw['id']}: a row has {len(values)} values for {len(raw['columns'])} columns: {row}.")
        for column, value in zip(raw["columns"], values, strict=True):
            if value is None:
                continue
            # The nearest wins: what a row says of itself, then its column, then the table.
            fields = {**common, **column, **of_row}
            # Merged key by key: a row's rank must not drop the table's epochs.
            fields["setting"] = {**common.get("setting", {}), **column.get("setting", {}), **of_row.get("setting", {})}
            rows.append(Finding(**fields, value=float(value)))
    return PublishedTable(raw["id"], raw["title"], sources()[raw["source"]], tuple(rows), raw.get("note", ""))


@cache
def tables() -> dict[str, PublishedTable]:
    """All tables by id, for example `001.table1`."""
    printed = [_table(raw) for path in sorted((FOLDER / "tables").glob("*.yaml")) for raw in _load(path)]
    return {table.id: table for table in printed}


def findings(
    *,
    table: str | None = None,
    source: str | None = None,
    method: str | None = None,
    data: str | None = None,
    metric: str | None = None,
    task_kind: str | None = None,
    n_examples: int | None = None,
) -> tuple[Finding, ...]:
    """All numbers that match every given field.

    Raises:
        UserError: an unknown table or source.
    """
    if table is not None and table not in tables():
        raise unknown_name("table", table, tables())
    if source is not None and source not in sources():
        raise unknown_name("source", source, sources())
    wanted = {
        "table": table, "source": source, "method": method, "data": data, "metric": metric, "task_kind": task_kind,
        "n_examples": n_examples,
    }  # fmt: skip
    given = {name: value for name, value in wanted.items() if value is not None}
    return tuple(
        finding
        for one in tables().values()
        for finding in one.findings
        if all(getattr(finding, name) == value for name, value in given.items())
    )


@cache
def claims() -> tuple[Claim, ...]:
    """What the sources say in words."""
    return tuple(Claim(**{**row, "methods": tuple(row["methods"])}) for row in _load(FOLDER / "claims.yaml"))


@cache
def formulas() -> dict[str, Formula]:
    """The lecture's formulas of trainable parameters, by method."""
    raw = _load(FOLDER / "formulas.yaml")
    return {method: Formula(method, text, raw["source"]) for method, text in raw["formulas"].items()}
