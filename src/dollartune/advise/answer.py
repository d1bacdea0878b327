"""The form of an advice: what it says, why, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Basis = Literal["own study", "study", "published", "statement"]
"""Measured in the user's study; in a study that was run with DollarTune; a number in a published table; said in words by
a source, without numbers."""


@dataclass(frozen=True)
class Recommendation:
    """One method in the ranking."""

    method: str
    recommended: bool
    """False: listed for comparison, with the reason why not."""
    basis: Basis
    reasons: tuple[str, ...]
    citations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """A ranking, best first."""

    question: str
    ranking: tuple[Recommendation, ...]
    rests_on: str
    """In one sentence."""
    does_not_know: tuple[str, ...]
    """What the ranking leaves open; never empty unless everything was measured with at least three seeds."""

    @property
    def recommended(self) -> tuple[str, ...]:
        return tuple(one.method for one in self.ranking if one.recommended)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"recommended": list(self.recommended)}

    def text(self) -> str:
        """For the console."""
        lines = [self.question, ""]
        for place, one in enumerate(self.ranking, start=1):
            mark = "use" if one.recommended else "   "
            cited = f" [{'; '.join(one.citations)}]" if one.citations else ""
            lines.append(f"{place:>2}. {mark} {one.method} ({one.basis}): {'; '.join(one.reasons)}{cited}")
        if not self.ranking:
            lines.append("No method can be recommended.")
        lines += ["", f"This rests on: {self.rests_on}"]
        lines += [f"It does not know: {gap}" for gap in self.does_not_know]
        return "\n".join(lines)
