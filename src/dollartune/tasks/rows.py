"""Rows as they come out of a file, each with the place it stands at, and what happens to a malformed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.tasks.base import SplitName

OnBadRow = Literal["stop", "skip"]

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What folders, files and rows of a split are called."""

SHOWN = 3  # skipped rows quoted in the notice; the rest is only counted


HINT = (
    "Correct the row, or leave such rows out: `--on-bad-row skip` with init and tune, `on_bad_row: skip` under `task:` in a "
    "study file."
)


@dataclass(frozen=True)
class Row:
    """One record of a data file."""

    values: Mapping[str, Any]
    where: str
    """For messages: `reviews.csv, line 17`."""


class BadRows:
    """Decides what a malformed row does: stop the run with its line number, or be skipped and counted.

    Args:
        action: `stop` raises at the first malformed row; `skip` leaves it out and mentions it in `notes()`.
        hint: what the user can do about it in the command at hand.
    """

    def __init__(self, action: OnBadRow = "stop", hint: str = HINT) -> None:
        self.action, self.hint = action, hint
        self.skipped: list[str] = []

    def report(self, where: str, what: str) -> None:
        """Books a malformed row.

        Raises:
            UserError: when malformed rows stop the run.
        """
        if self.action == "stop":
            raise UserError(f"{where}: {what}.", self.hint)
        self.skipped.append(f"{where}: {what}")

    def notes(self) -> list[str]:
        """One sentence on what was skipped; nothing if nothing was."""
        if not self.skipped:
            return []
        quoted = "; ".join(self.skipped[:SHOWN]) + ("; ..." if len(self.skipped) > SHOWN else "")
        rows = "1 malformed row" if len(self.skipped) == 1 else f"{len(self.skipped)} malformed rows"
        return [f"skipped {rows} (on_bad_row: skip): {quoted}"]
