"""Errors that a user can act on: what was given, what was expected, the nearest valid name, what to run next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. The command line prints the message alone and exits with code 2.

    Args:
        message: what was given and what was expected, in full sentences.
        hint: the next command to run, or the setting to change; printed on a line of its own.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class ProcessLost(Exception):
    """The process that did the work has ended, and took its reason along."""


def nearest(given: str, valid: Iterable[str]) -> str:
    """A clause to append to an error: ` Did you mean 'lora'?`, or nothing if no valid name is close."""
    names = list(valid)
    # what was typed in part comes before what is spelled alike: `a100` is no `a10` but an `a100-80gb`
    begun = [name for name in names if len(given) >= 3 and name.startswith(given)]
    match = sorted(begun)[:1] or difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown_name(
    what: str, given: str, valid: Iterable[str], hint: str | None = None, listed: Iterable[str] | None = None
) -> UserError:
    """The error for a name that is not in a fixed set, for example `unknown method 'lorra'`.

    Args:
        valid: all that may be written, aliases among them; the nearest is suggested.
        listed: those that are named in the message, where not all of `valid`.
    """
    names = list(valid)
    shown = names if listed is None else list(listed)
    return UserError(f"unknown {what} {given!r}.{nearest(given, names)} Known: {', '.join(sorted(shown))}.", hint)
