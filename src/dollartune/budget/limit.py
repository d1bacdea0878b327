"""What may be spent: `$1`, `20 min`, per method or for the whole study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dollartune.errors import UserError, unknown_name

_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)
_DOLLARS = re.compile(r"\$\s*(\d+(?:\.\d+)?|\.\d+)|(\d+(?:\.\d+)?|\.\d+)\s*(?:\$|usd|dollars?)", re.IGNORECASE)
_EXAMPLES = "Write dollars as '$1' or '0.50 usd', time as '90 s', '20 min', '1 h 30 min'."


def parse_seconds(text: str) -> float:
    """`90 s`, `20 min`, `1h30m` in seconds.

    Raises:
        UserError: not a length of time.
    """
    total, position = 0.0, 0
    for part in _PART.finditer(text):
        unit = part[2].lower()
        unit = unit if unit in _SECONDS else unit.removesuffix("s")
        if part.start() != position or unit not in _SECONDS:
            break
        total += float(part[1]) * _SECONDS[unit]
        position = part.end()
    if not text.strip() or position != len(text):
        raise UserError(f"{text!r} is not a length of time.", _EXAMPLES)
    return total


@dataclass(frozen=True)
class Budget:
    """A promise not to spend more than this. Both given: the one that is reached first.

    Raises:
        UserError: nothing given, or an amount that is not positive.
    """

    seconds: float | None = None
    """Booked seconds, of each method or of the study."""
    dollars: float | None = None
    """At the price of the machine."""
    per: Literal["method", "study"] = "study"
    """`method`: each method gets this much (a fair fight); `study`: all together (a race)."""

    def __post_init__(self) -> None:
        if self.per not in ("method", "study"):
            raise unknown_name("budget 'per'", str(self.per), ("method", "study"))
        if self.seconds is None and self.dollars is None:
            raise UserError("a budget needs seconds or dollars.", _EXAMPLES)
        for name, value in (("seconds", self.seconds), ("dollars", self.dollars)):
            if value is not None and not value > 0:
                raise UserError(f"a budget's {name} must be above zero, got {value}.", _EXAMPLES)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | Budget) -> Budget:
        """From `"$1"`, `"20 min"`, `"$1 per method"`, or `{dollars: 1, per: method}`.

        Raises:
            UserError: anything else; a bare number too, as it may mean dollars or seconds.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(value)
        if not isinstance(value, str):
            raise UserError(f"budget {value!r}: dollars or seconds?", _EXAMPLES)
        text, per = value.strip(), "study"
        match = re.fullmatch(r"(.*?)\s+(?:per\s+(\w+)|each)", text, re.IGNORECASE)
        if match:
            text, per = match[1], (match[2] or "method").lower()
        if money := _DOLLARS.fullmatch(text):
            return cls(dollars=float(money[1] or money[2]), per=per)  # type: ignore[arg-type]  # checked above
        return cls(seconds=parse_seconds(text), per=per)  # type: ignore[arg-type]

    @classmethod
    def _from_mapping(cls, value: Mapping[str, Any]) -> Budget:
        known = ("seconds", "dollars", "per")
        for key in value:
            if key not in known:
                raise unknown_name("budget key", str(key), known)
        seconds, dollars = value.get("seconds"), value.get("dollars")
        if isinstance(seconds, str):
            seconds = parse_seconds(seconds if _PART.fullmatch(seconds) else f"{seconds} s")
        if isinstance(dollars, str):
            dollars = cls.parse(dollars if _DOLLARS.fullmatch(dollars.strip()) else f"${dollars}").dollars
        for name, amount in (("seconds", seconds), ("dollars", dollars)):
            if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)):
                raise UserError(f"a budget's {name} must be a number, got {amount!r}.", _EXAMPLES)
        return cls(seconds, dollars, value.get("per", "study"))

    def limit_seconds(self, price_per_hour: float) -> float:
        """The promise in seconds on a machine of that price; infinity when only dollars are limited and it is free."""
        limits = [self.seconds] if self.seconds is not None else []
        if self.dollars is not None:
            limits.append(self.dollars / price_per_hour * 3600 if price_per_hour > 0 else float("inf"))
        return min(limits)

    def __str__(self) -> str:
        amounts = [f"${self.dollars:g}"] if self.dollars is not None else []
        if self.seconds is not None:
            amounts.append(f"{self.seconds / 60:g} min" if self.seconds >= 120 else f"{self.seconds:g} s")
        return " or ".join(amounts) + (" per method" if self.per == "method" else "")
