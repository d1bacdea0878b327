"""Errors that a user can act on: what was given, what was expected, the nearest valid name, what to run next."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any


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


def need_package(package: str, setting: str) -> None:
    """Raises a `UserError` if a package that a setting needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{setting} needs the package {package}, which is not installed.", hint=f"pip install {package}"
        )


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


_PLAIN = {
    "Input should be a valid string": "a text",
    "Input should be a valid integer": "a whole number",
    "Input should be a valid number": "a number",
    "Input should be a finite number": "a finite number",
    "Input should be a valid boolean": "true or false",
    "Input should be a valid list": "a list",
    "Input should be a valid dictionary": "a mapping",
    "Input should be a valid dictionary or instance of ": "a mapping",
    "Keys should be strings": "a key in letters",
    "List should have at least 1 item after validation, not 0": "a list with at least one entry",
}
"""pydantic's words -> ours."""


def should_be(name: str, messages: Iterable[str], given: Any) -> str:
    """The sentence for a setting whose value is of the wrong kind: `seeds should be a whole number; got '3'. ...`.

    Args:
        messages: pydantic's, one for each form that the setting may have.
    """
    wanted = [_PLAIN.get(re.sub(r"\w+Settings", "", message), message) for message in messages]
    text = " or ".join(dict.fromkeys(re.sub("^Input should be ", "", message) for message in wanted))
    meant = nearest(str(given), re.findall(r"'(\w+)'", text)) + _as_meant(name.rpartition(".")[2], text, given)
    return f"{name} should be {text}; got {given!r}.{meant}"


def _as_meant(key: str, wanted: str, given: Any) -> str:
    """How what was probably meant is written, where YAML or Python read it as something else; empty where that is not clear."""
    if isinstance(given, bool) and "true or false" not in wanted and ("text" in wanted or "'" in wanted):
        return " YAML reads yes, no, on and off as true and false: write a text of that kind in quotes."
    number = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
    if isinstance(given, str) and "number" in wanted and re.fullmatch(number, given, re.IGNORECASE):
        return " Write it without quotes."
    # a list of one is what a single entry means
    if wanted == "a list" and isinstance(given, str | int | dict) and not isinstance(given, bool):
        return f" Write `{key}: {_in_yaml([given])}`."
    return ""


def _in_yaml(value: Any) -> str:
    import yaml

    try:
        text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    except yaml.YAMLError:  # an object of a program's
        return str(value)
    return text.strip()
