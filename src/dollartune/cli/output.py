"""Printing: JSON for programs, aligned tables for people."""

from __future__ import annotations

import gc
import json
import logging
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from dollartune import format as numbers

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether -q was given: results and errors are printed, progress and notes are not."""


def collect_rarely() -> None:
    """For commands that read and end: imported libraries make two million objects that stay, and looking through them for garbage
    takes a tenth of such a command's time. Not for those that train: what a trial leaves behind must go before the next one."""
    gc.set_threshold(50_000, 10, 10)  # Python's own: 700, 10, 10


def set_verbosity(quiet: bool, verbose: int) -> None:
    """-q leaves out progress and notes; -v prints what is decided and why to standard error, -vv what the libraries say too."""
    QUIET.set(quiet)
    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("dollartune").setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
        logging.getLogger().setLevel(logging.INFO if verbose > 1 else logging.WARNING)


def print_note(text: str) -> None:
    """Something that was guessed, decided or left out."""
    if not QUIET.get():
        print(f"note: {text}")


def command(*words: object) -> str:
    """A command to be typed as it is printed: a file's name may have spaces."""
    return shlex.join(["dollartune", *map(str, words)])


def print_json(data: Any, indent: int | None = 1) -> None:
    """Data as JSON on standard output; without indent on one line, for whoever reads a pipe by lines."""
    # escaped where the terminal's letters are few: JSON has a way to write the others
    escaped = not (getattr(sys.stdout, "encoding", None) or "utf8").lower().startswith("utf")
    print(json.dumps(_plain(data), indent=indent, ensure_ascii=escaped, allow_nan=False), flush=indent is None)


def answer(json: bool, data: Any, *lines: str) -> None:
    """What a command did: as data for programs, or in sentences for people."""
    if json:
        print_json(data)
        return
    for line in lines:
        print(line)


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy's numbers as numbers, not-a-number as null, anything else as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def print_table(rows: Sequence[Mapping[Any, Any]], columns: Mapping[str, str] | None = None) -> None:
    """Rows as a table; numbers to the right. `columns` maps keys to headings and sets the order."""
    from rich.cells import cell_len
    from rich.console import Console

    headings = columns or {key: key for key in (rows[0] if rows else {})}
    numeric = {
        key: any(isinstance(row.get(key), int | float) and not isinstance(row.get(key), bool) for row in rows)
        for key in headings
    }
    lines = [list(headings.values()), *([text(row.get(key), key) for key in headings] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    console = Console()
    terminal = console.is_terminal
    if sum(widths) + 2 * len(widths) > (console.width if terminal else _PAGE_WIDTH):
        return _print_folded(lines, list(numeric.values()))
    for number, line in enumerate(lines):
        cells = []
        for cell, width, right in zip(line, widths, numeric.values(), strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if right else cell + space)
        plain = "  ".join(cells)
        print(f"\033[1m{plain}\033[0m" if terminal and number == 0 else plain)
    return None


_PAGE_WIDTH = 200
"""Columns of text where the output is a file or a pipe: wide enough for every table that fits on one, so that each row is
one line and can be searched for."""


def _print_folded(lines: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    """A table wider than the page, with long cells on several lines. Slow: about half a millisecond a row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, number in zip(lines[0], numeric, strict=True):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    console = Console()
    # Into a pipe a table is 200 wide: rich would else wrap at 80, and wrapped rows cannot be read by other programs.
    console.print(table) if console.is_terminal else Console(width=_PAGE_WIDTH).print(table)


def text(value: Any, key: str = "") -> str:
    """A value as people read it: 1,234 parameters, 0.842, $0.0012, 1.2 GB."""
    if value is None or (isinstance(value, float) and value != value):
        return numbers.NO_PRICE if key == "dollars" else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("bytes") and isinstance(value, int | float):
        return numbers.size(value)
    if key == "dollars":
        return numbers.dollars(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:.1f}"
            if abs(value) >= 100
            else f"{value:.2f}"
            if abs(value) >= 10 or key == "seconds"
            else numbers.score(value)
        )
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
