"""Reference 001's framework for choosing a method, computed from its own tables.

The paper states in sections 3.2 and 3.3 what to use when time, memory or performance is short. Each statement is a
rule over a table; here the rules run and the statements come out (a test holds them against each other):

time         Table 4: seconds to the best validation loss of full tuning against the mean of the other methods, per data
             set. Full tuning where it is faster on most. The table ends at medium scale; beyond, the logarithm of the
             ratio is carried on over the logarithm of the scale, and the advice says so.
memory       Table 5: score per trainable parameter. The methods that come first on some data set.
performance  Table 1: mean rank over the data sets. Full tuning if it leads; else the methods ranked before it.

One refinement: where the paper names one list for low and medium scale together, the tables tell them apart ((IA)3 does
well at medium scale and badly at low scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dollartune import format as numbers
from dollartune.evidence import Finding, findings
from dollartune.methods.registry import reference

Scale = Literal["low", "medium", "high"]
SCALES: dict[Scale, int] = {"low": 100, "medium": 1000, "high": 10_000}
SOURCE = "reference 001"
FULL = reference("everything").name
"""What the framework calls full fine-tuning."""


@dataclass(frozen=True)
class Ranked:
    """A method's place in one question of the framework."""

    method: str
    mean_rank: float
    """Over the data sets; 1 is best."""
    wins: int
    """Data sets on which it came first."""
    mean_score: float


@dataclass(frozen=True)
class Recommendation001:
    """What the tables recommend."""

    methods: tuple[str, ...]
    ranking: tuple[Ranked, ...]
    """All compared methods, best first."""
    table: str
    extrapolated: bool
    reason: str


def scale_of(n_examples: int) -> Scale:
    """The nearest scale, in logarithms: 1 to 316 is low, to 3,162 medium, above high."""
    exponent = math.log10(max(1, n_examples))
    # Nearest of the source's scales (10^2, 10^3, 10^4 rows) on a logarithmic axis.
    return "low" if exponent <= 2.5 else "medium" if exponent <= 3.5 else "high"


def rank(rows: Sequence[Finding]) -> tuple[Ranked, ...]:
    """Mean rank of each method over data sets; ties share the mean of their places."""
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        scores.setdefault(row.data, {})[row.method] = row.value
    methods = sorted({row.method for row in rows})
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    wins = dict.fromkeys(methods, 0)
    for by_method in scores.values():
        for method, score in by_method.items():
            better = sum(other > score for other in by_method.values())
            equal = sum(other == score for other in by_method.values())
            ranks[method].append(better + (equal + 1) / 2)
            wins[method] += better == 0
    ranked = [
        Ranked(method, sum(where) / len(where), wins[method], sum(s[method] for s in scores.values()) / len(scores))
        for method, where in ranks.items()
        if len(where) == len(scores)
    ]
    return tuple(sorted(ranked, key=lambda one: (one.mean_rank, -one.wins, one.method)))


def _rows(table: str, scale: Scale, task_kind: str | None, metric: str | None = None) -> tuple[Finding, ...]:
    return findings(table=table, n_examples=SCALES[scale], task_kind=task_kind, metric=metric)


def performance(scale: Scale, task_kind: str | None = None) -> Recommendation001:
    """Full tuning if it has the best mean rank of Table 1, else those ranked before it."""
    ranking = rank(_rows("001.table1", scale, task_kind))
    above = next(index for index, one in enumerate(ranking) if one.method == FULL)
    methods = (FULL,) if above == 0 else tuple(one.method for one in ranking[:above])
    lead = ranking[0]
    verb = "leads" if above == 0 else f"is place {above + 1} of {len(ranking)}"
    reason = (
        f"by mean rank over {SOURCE}'s data sets at {scale} scale, full tuning {verb}; "
        f"{lead.method} has mean rank {numbers.score(lead.mean_rank, 2)}"
    )
    return Recommendation001(methods, ranking, "001.table1", False, reason)


def memory(scale: Scale, task_kind: str | None = None) -> Recommendation001:
    """The methods with the highest score per trainable parameter on some data set (Table 5)."""
    ranking = rank(_rows("001.table5", scale, task_kind))
    winners = tuple(one.method for one in ranking if one.wins)
    reason = f"highest score per trainable parameter at {scale} scale on at least one data set of {SOURCE}"
    return Recommendation001(winners, ranking, "001.table5", False, reason)


def speedups(scale: Scale, task_kind: str | None = None) -> dict[str, float]:
    """How much sooner full tuning converges than the mean of the other methods, by data set: 1 - full / others."""
    seconds: dict[str, dict[str, float]] = {}
    for row in _rows("001.table4", scale, task_kind, "convergence_seconds"):
        seconds.setdefault(row.data, {})[row.method] = row.value
    return {data: 1 - by_method[FULL] / _mean_of_others(by_method) for data, by_method in seconds.items()}


def _mean_of_others(seconds: Mapping[str, float]) -> float:
    others = [value for method, value in seconds.items() if method != FULL]
    return sum(others) / len(others)


def time(scale: Scale, task_kind: str | None = None) -> Recommendation001:
    """Full tuning where it converges first on most data sets, else the parameter-efficient methods by their speed."""
    extrapolated = scale == "high"
    if extrapolated:
        low, medium = speedups("low", task_kind), speedups("medium", task_kind)
        # log ratio of the others' seconds to full tuning's, one more step of the scale in the same direction
        gain = {data: 1 - math.exp(2 * math.log(1 - medium[data]) - math.log(1 - low[data])) for data in low}
    else:
        gain = speedups(scale, task_kind)
    mean = 1 - math.exp(sum(math.log(1 - value) for value in gain.values()) / len(gain))
    faster = mean > 0
    # Table 6 has no prompt tuning and no high scale; the order among methods is that of the nearest one it has
    ranking = rank(_rows("001.table6", "medium" if extrapolated else scale, task_kind))
    methods = (FULL,) if faster else tuple(one.method for one in ranking if one.method != FULL)
    how = "carried on from low and medium scale" if extrapolated else f"at {scale} scale"
    reason = (
        f"full tuning reaches its best validation loss {numbers.percent(abs(mean))} {'sooner' if faster else 'later'} than the "
        f"other methods ({SOURCE}, Table 4, {how})"
    )
    if extrapolated:
        reason += "; the table has no high scale, so this is a trend, not a measurement"
    return Recommendation001(methods, ranking, "001.table4", extrapolated, reason)


QUESTIONS = {"time": time, "memory": memory, "quality": performance}
