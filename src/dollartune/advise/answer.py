"""The form of an advice: what it says, why, and what it rests on."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Literal

from dollartune.evidence import sources

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

    def to_dict(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self) | {"recommended": list(self.recommended)}

    def short(self, costs: str | None = None, command: str | None = None) -> str:
        """For the console, in five lines: the method, why, what it costs, how sure that is, and what to run.

        Args:
            costs: what it costs here, in words; None where the backbone or the rows are not known.
            command: to run next.
        """
        best = next((one for one in self.ranking if one.recommended), None)
        if best is None:
            return f"{self.question}\nNo method can be recommended. More: dollartune advise ... --all"
        others = [one.method for one in self.ranking if one.recommended and one is not best]
        beside = f" (or {', '.join(others[:2])})" if others else ""
        sure = {"own study": "measured in your study", "study": "measured on small backbones, not on yours",
                "published": "published results, not your data", "statement": "said by a source, not measured"}  # fmt: skip
        gap = f"; open: {self.does_not_know[0].partition(':')[0].rstrip('.')}" if self.does_not_know else ""
        return "\n".join(
            [
                f"method:  {best.method}{beside}",
                f"why:     {best.reasons[0] if best.reasons else 'it ranks first'}",
                f"cost:    {costs or 'give --backbone (and --machine where it is another), or: dollartune plan STUDY.yaml'}",
                f"sure:    {sure[best.basis]}{gap}",
                f"next:    {command or 'dollartune tune DATA --method ' + best.method}",
            ]
        )

    def text(self) -> str:
        """For the console: a ranking with reasons, what it rests on, what it does not know, and the sources in full."""
        lines = [self.question, ""]
        width = max((len(one.method) for one in self.ranking), default=0)
        for number, one in enumerate(self.ranking, start=1):
            mark = "use" if one.recommended else "   "
            lines.append(f"{number:>2}. {mark} {one.method:<{width}}  ({_BASIS[one.basis]})")
            lines += [wrapped for reason in one.reasons for wrapped in _wrapped(reason, "       - ")]
            if one.citations and one.basis != "own study":
                lines += _wrapped(f"[{'; '.join(dict.fromkeys(one.citations))}]", "         ")
        if not self.ranking:
            lines.append("No method can be recommended.")
        lines += ["", *_wrapped(f"This rests on: {self.rests_on}", "")]
        for gap in self.does_not_know:
            lines += _wrapped(f"It does not know: {gap}", "")
        named = "\n".join(citation for one in self.ranking for citation in one.citations) + self.rests_on
        cited = [
            f"reference {key}: {source.citation}" for key, source in sources().items() if f"reference {key}" in named
        ]
        if cited:
            lines += ["", "Sources:", *(wrapped for text in cited for wrapped in _wrapped(text, "  "))]
        return "\n".join(lines)


_BASIS = {
    "own study": "measured in your study",
    "study": "measured in a study of ours",
    "published": "published",
    "statement": "said, not measured",
}


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        text, 110, initial_indent=start, subsequent_indent=" " * (len(start) or 2), break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
