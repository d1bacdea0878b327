"""What serving an adapter may take, as part of what is best: `20 ms`, `500 MiB`, `$0.10 per 1000`.

text ──> ServingLimits ──exceeded(seconds, bytes, dollars)──> a sentence for each limit that is not kept
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from dollartune import format as numbers
from dollartune.budget.limit import parse_bytes
from dollartune.errors import UserError

_TIME = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s)", re.IGNORECASE)
_DOLLARS = re.compile(r"\$\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:/|per)\s*1[ ,]?000(?:\s*requests?)?", re.IGNORECASE)
_EXAMPLES = (
    "Write '20 ms' (a request), '500 MiB' (weights and what a batch of requests takes) or '$0.10 per 1000' (requests)."
)


class ServingCost(NamedTuple):
    """What answering takes, as measured."""

    seconds: float
    """Of one request alone."""
    peak_bytes: int
    dollars_per_1000: float | None
    """Requests, in batches; None without a price."""


class ServingLimits(BaseModel):
    """The most that serving may take; what takes more is not handed over."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    seconds: float | None = Field(None, gt=0)
    """Of one request alone."""
    peak_bytes: float | None = Field(None, gt=0)
    """Of the weights, the adapter and what answering a batch of requests adds; Python and its libraries are not in it."""
    dollars_per_1000: float | None = Field(None, gt=0)
    """Of a thousand requests in batches, at the machine's price."""

    def exceeded(self, cost: ServingCost) -> list[str]:
        """What is over its limit, in words; empty where all are kept."""
        told = {
            "seconds": (cost.seconds, milliseconds, "a request"),
            "peak_bytes": (float(cost.peak_bytes), mebibytes, "of memory"),
            # Without a price no limit in dollars can be exceeded.
            "dollars_per_1000": (cost.dollars_per_1000 or 0.0, numbers.dollars, "per 1,000 requests"),
        }
        return [
            f"{words(value)} {unit} (limit: {words(limit)})"
            for name, (value, words, unit) in told.items()
            if (limit := getattr(self, name)) is not None and value > limit
        ]

    def excess(self, cost: ServingCost) -> float:
        """How far over the limits it is: the largest ratio of what it takes to what it may."""
        pairs = zip((self.seconds, self.peak_bytes, self.dollars_per_1000), cost, strict=True)
        return max((value / limit for limit, value in pairs if limit is not None and value is not None), default=0.0)

    def __str__(self) -> str:
        parts = [milliseconds(self.seconds)] if self.seconds is not None else []
        parts += [mebibytes(self.peak_bytes)] if self.peak_bytes is not None else []
        parts += [f"{numbers.dollars(self.dollars_per_1000)} per 1,000"] if self.dollars_per_1000 is not None else []
        return ", ".join(parts)


class LimitExceeded(Exception):
    """Serving a method takes more than it may."""


def parse_limits(texts: str | Sequence[str]) -> ServingLimits | None:
    """`["20 ms", "500 MiB"]` -> the limits; None where there are none.

    Raises:
        UserError: something else, an amount of nothing, or two limits of one kind.
    """
    values: dict[str, float] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        stripped = text.strip()
        if match := _TIME.fullmatch(stripped):
            name, value = "seconds", float(match[1]) * (0.001 if match[2].lower() == "ms" else 1.0)
        elif (size := parse_bytes(stripped)) is not None:
            name, value = "peak_bytes", float(size)
        elif match := _DOLLARS.fullmatch(stripped):
            name, value = "dollars_per_1000", float(match[1])
        else:
            raise UserError(f"{text!r} is no limit of what is served.", _EXAMPLES)
        if not value > 0 or name in values:
            raise UserError(
                f"limit {text!r}: {'there are two of its kind' if value > 0 else 'nothing keeps that'}.", _EXAMPLES
            )
        values[name] = value
    return ServingLimits(**values) if values else None


def milliseconds(seconds: float) -> str:
    """0.0214 -> 21.4 ms."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def mebibytes(size: float) -> str:
    """In the unit in which memory is sold."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.4g} MiB"
