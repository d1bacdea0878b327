"""What may be spent: `$1`, `20 min`, `5 min, 2 GiB`, `{dollars: 1, per: method}`; and how many seconds that is.

    text ──> BudgetSettings ──limit(trials)──> (seconds, dollars) of one account ──in_seconds(price)──> seconds

An account is whoever spends: the study, or one method of it. Everything that asks how much a budget allows (the ledger,
`plan`, `status`, the report, the start of a study) asks here, so that they cannot contradict each other.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dollartune.errors import UserError, unknown_name

SECONDS_PER = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
}
"""Units of time as people write them. Every plural by name: `ms`, read as a plural, would be minutes."""
_PART = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)
_DOLLARS = re.compile(r"\$\s*(\d+(?:\.\d+)?|\.\d+)|(\d+(?:\.\d+)?|\.\d+)\s*(?:\$|usd|dollars?)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]i?b)", re.IGNORECASE)
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_EXAMPLES = (
    "Write dollars as '$1' or '0.50 usd', time as '90 s', '20 min', '1 h 30 min'; memory behind it, as '5 min, 2 GiB'."
)

Per = Literal["method", "study", "trial"]


def in_seconds(seconds: float | None, dollars: float | None, price_per_hour: float) -> float:
    """Seconds that a limit of time, of money, or of both leaves on a machine of that price: the one that ends first.

    Infinity without any limit, and where only dollars are limited on a machine that costs nothing.
    """
    limits = [float("inf") if seconds is None else seconds]
    if dollars is not None and price_per_hour > 0:
        limits.append(dollars / price_per_hour * 3600)
    # Where both are limited the first one reached ends the work: neither may be broken.
    return min(limits)


class Limit(NamedTuple):
    """What one account may spend in all; None where that is not limited."""

    seconds: float | None
    dollars: float | None

    def in_seconds(self, price_per_hour: float) -> float:
        return in_seconds(self.seconds, self.dollars, price_per_hour)


class BudgetSettings(BaseModel):
    """What may be spent."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    dollars: float | None = Field(None, gt=0)
    """Money."""
    seconds: float | None = Field(None, gt=0)
    """Time; `minutes:` or `hours:` may be written instead."""
    per: Per = "method"
    """Who gets it: each method the same (the fair fight), all together, or each trial."""
    price: str | float | None = None
    """Price of this machine, for example 2.49/h."""
    machine: str | None = None
    """A machine of the price table (`dollartune machines ls`), when no price is given."""
    reserve: float = Field(0.15, ge=0.0, lt=1.0)
    """Share kept back for the final evaluation and export."""
    memory: str | None = None
    """The most memory that the process may take (on a GPU: of the device's), for example 2 GiB. Passes become smaller where they
    would need more, and what does not fit one row at a time is not tuned."""

    @model_validator(mode="before")
    @classmethod
    def _as_seconds(cls, data: Any) -> Any:
        """Minutes and hours as seconds."""
        if not isinstance(data, dict) or not {"minutes", "hours"} & data.keys():
            return data
        units = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
        given = [unit for unit in units if unit in data]
        if len(given) > 1 or isinstance(data[given[0]], bool) or not isinstance(data[given[0]], int | float):
            written = ", ".join(f"{unit}: {data[unit]!r}" for unit in given)
            raise ValueError(f"time is one of seconds, minutes and hours, as a number; got {written}")
        rest = {key: value for key, value in data.items() if key != given[0]}
        return {**rest, "seconds": float(data[given[0]] * units[given[0]])}

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, written: str | None) -> str | None:
        if written is not None and not (parse_bytes(written) or 0) > 0:
            raise ValueError(f"{written!r} is no size of memory: write '2 GiB' or '800 MB'")
        return written

    @property
    def memory_bytes(self) -> int | None:
        """Most bytes of memory; None where they are not limited."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def limited(self) -> bool:
        """Whether time or money are limited: a budget may also state a price or memory alone."""
        return self.seconds is not None or self.dollars is not None

    def limit(self, trials: int) -> Limit:
        """What one account may spend: a method, or the study with its trials, which pool what each of them gets."""
        # Trials pool their limits: one that needs less leaves the rest to the others, as the study's promise is the
        # sum.
        times = trials if self.per == "trial" else 1
        return Limit(*(None if amount is None else amount * times for amount in (self.seconds, self.dollars)))

    def __str__(self) -> str:
        amounts = [f"${self.dollars:g}"] if self.dollars is not None else []
        if self.seconds is not None:
            # Up to two minutes seconds are what was typed.
            amounts.append(f"{self.seconds / 60:g} min" if self.seconds >= 120 else f"{self.seconds:g} s")
        who = "" if self.per == "study" or not amounts else f" per {self.per}"
        # Memory is no part of what is shared out: every method may have all of it, one after another.
        parts = [" or ".join(amounts) + who] if amounts else []
        return ", ".join(parts if self.memory is None else [*parts, self.memory])


def parse_budget(text: str, per: Per = "study") -> BudgetSettings:
    """From `$1`, `20 min`, `$1 per method`, `90 s each`, `5 min, 2 GiB`.

    Args:
        per: who gets it where the text does not say so.

    Raises:
        UserError: anything else, or an amount of nothing.
    """
    if not isinstance(text, str):
        raise UserError(f"{text!r} has no unit: dollars, or how much time?", _EXAMPLES)
    given, _, memory = text.partition(",")
    if memory and parse_bytes(memory.strip()) is None:
        if re.search(r"\d,\d", text):
            raise UserError(f"{text!r}: a comma separates memory; write 1.5 and 1000, not 1,5 and 1,000.", _EXAMPLES)
        raise UserError(f"{memory.strip()!r} is no size of memory.", _EXAMPLES)
    amount, who = given.strip(), str(per)
    # Who gets it comes last in every wording, so that it is cut off before the amount is read.
    match = re.fullmatch(r"(.*?)\s+(?:per\s+(\w+)|each)", amount, re.IGNORECASE)
    if match:
        amount, who = match[1], (match[2] or "method").lower()
    if who not in ("method", "study", "trial"):
        raise unknown_name("budget 'per'", who, ("method", "study", "trial"))
    if re.fullmatch(r"[\d.:]*", amount):
        raise UserError(f"{text!r} has no unit: dollars, or how much time?", _EXAMPLES)
    money = _DOLLARS.fullmatch(amount)
    value = float(money[1] or money[2]) if money else parse_seconds(amount)
    if not value > 0:
        raise UserError(f"a budget must be above zero, got {text!r}.", _EXAMPLES)
    also = {"memory": memory.strip()} if memory else {}
    return BudgetSettings.model_validate({"dollars" if money else "seconds": value, "per": who, **also})


def priced_budget(text: str, price: str | float | None) -> BudgetSettings:
    """What `tune` may spend in all, from `$1` or `5 min`.

    Args:
        price: of this machine.

    Raises:
        UserError: no budget, or dollars without a price.
    """
    parsed = parse_budget(text, per="study")
    if parsed.dollars is not None and price is None:
        raise UserError(
            f"a budget of {text} needs the price of this machine.",
            hint="--price 2.49/h (dollartune machines ls), or a time: --budget '5 min'",
        )
    return parsed


def parse_bytes(text: str) -> int | None:
    """`2 GiB`, `800 MB` in bytes; None where it is no size."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else int(float(match[1]) * _BYTES[match[2].lower()])


def parse_seconds(text: str) -> float:
    """`90 s`, `20 min`, `1h30m` in seconds.

    Raises:
        UserError: not a length of time.
    """
    total, position = 0.0, 0
    for part in _PART.finditer(text):
        seconds = SECONDS_PER.get(part[2].lower())
        # A gap is text that is no length of time ("20 min or so"); half of it must not count.
        if part.start() != position or seconds is None:
            break
        total += float(part[1]) * seconds
        position = part.end()
    if not text.strip() or position != len(text):
        raise UserError(f"{text!r} is not a length of time.", _EXAMPLES)
    return total
