"""Which methods may be the best: those that no other one beats by more than chance explains.

For each method i, the rivals j are held against it on the same examples and seeds. With M methods one looks M - 1
times, and the luckiest of many rivals looks better than it is; so each look gets a smaller chance of error, such that
all looks together keep the promise:

    i is left out if, for some j:   d_ji > sqrt( z(a)^2 v + max(0, t(a, df)^2 s^2 - z(a)^2 r/N) / S )

    d, v      difference of the mean scores, its variance over examples
    s^2, r/N  variance of the difference over seeds, and the part of it that stands in v (see `intervals`)
    a         one-sided chance per look, found so that the largest of the M - 1 differences, which move together because
              all are taken against i on the same examples, passes z(a) with chance 1 - level (a max-t correction)
    df        S - 1, plus what the other pairs' seed variances teach about this one's (a moderated t)

Then the truly best method is in the set with at least the promised confidence, however many methods were tried.

Three seeds alone know little about their variance (df = 2). The pairs' variances are therefore shrunk towards their
common value as far as they agree with each other, by an inverse chi-square prior fitted to them. Where methods differ
in stability (prompt tuning may), the prior is weak and each pair stands on its own. The prior's degrees of freedom are
capped at (M - 1)(S - 1), what the seeds of all methods hold in total.

Source: subset of the best: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the
best", 1984. Moderated variances: Smyth, "Linear models and empirical Bayes methods", 2004, equations 4 to 6.
Quadrature: Banerjee 1961, as in `intervals`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from dollartune.errors import UserError
from dollartune.stats.intervals import (
    RESAMPLES,
    Interval,
    Variance,
    _check_level,
    draw_counts,
    paired,
    score_interval,
    squared_by_seeds,
    variance_of,
)
from dollartune.stats.outcomes import Floats, Sampled
from dollartune.stats.size import NeededSize, size_from_variance

_DRAWS = 20_000
"""Normal draws behind the max-t correction; its error in `a` is about 2 % of `a`."""


@dataclass(frozen=True)
class Standing:
    """One method among the others."""

    method: str
    score: Interval
    difference: float
    """To the best observed method: 0 for that one, else negative."""
    low: float
    high: float
    """Paired interval of the difference, widened for the number of methods compared."""
    p_value: float
    """Chance, in the worst case that it is in truth equal to the best, to see a rival ahead so far; already corrected
    for the number of methods."""
    may_be_best: bool
    beaten_by: str | None
    """The rival that rules it out, if any."""


@dataclass(frozen=True)
class Comparison:
    """All methods on one task, best observed first."""

    standings: tuple[Standing, ...]
    level: float
    sentence: str
    """The result for a newcomer, with how many comparisons were made and what was done about it."""
    explanation: str
    """The second half of it alone: what guards against a lucky winner, in one sentence."""
    warnings: tuple[str, ...]
    needed: NeededSize | None
    """Test examples that would tell the best two apart, when these do not."""

    @property
    def best(self) -> str:
        """The method with the highest observed score."""
        return self.standings[0].method

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The best observed method and all that cannot be told apart from it."""
        return tuple(standing.method for standing in self.standings if standing.may_be_best)

    def __getitem__(self, method: str) -> Standing:
        for standing in self.standings:
            if standing.method == method:
                return standing
        raise KeyError(method)


@dataclass(frozen=True)
class _Pairs:
    """Matrices `(M, M)` over ordered pairs: row minus column."""

    difference: Floats
    examples: Floats
    """Variance of the difference over examples."""
    spread: Floats
    """Moderated variance over seeds, s^2."""
    interaction: Floats
    degrees: Floats
    count: Floats
    """Seeds that were paired."""

    @property
    def total(self) -> Floats:
        """Variance of the difference of the means."""
        beyond: Floats = np.maximum(self.spread - self.interaction, 0) / self.count
        return self.examples + beyond

    def half_width(self, chance: float, row: int, column: int) -> float:
        """With one-sided chance of error `chance`."""
        by_seeds = squared_by_seeds(
            chance,
            float(self.spread[row, column]),
            float(self.interaction[row, column]),
            float(self.degrees[row, column]),
            int(self.count[row, column]),
        )
        return float(np.sqrt(float(special.ndtri(1 - chance)) ** 2 * self.examples[row, column] + by_seeds))

    def p_value(self, row: int, column: int) -> float:
        """The one-sided chance at which the half-width equals the difference."""
        difference = float(self.difference[row, column])
        if difference <= 0:
            return 0.5
        least = np.log(1e-15)

        def gap(log_chance: float) -> float:
            return self.half_width(float(np.exp(log_chance)), row, column) - difference

        return 0.0 if gap(least) < 0 else float(np.exp(optimize.brentq(gap, least, np.log(0.5))))


def prior_of_variances(variances: Floats, degrees: int, limit: float) -> tuple[float, float]:
    """The common value of sample variances and how many degrees of freedom their agreement is worth.

        log s^2 has mean log s0^2 + digamma(d/2) - digamma(d0/2) + log(d0/d) and variance trigamma(d/2) + trigamma(d0/2)

    Returns:
        s0^2 and d0 (0: no agreement beyond chance to learn from; at most `limit`).
    """
    positive = variances[variances > 0]
    if positive.size < 3:
        return 0.0, 0.0
    logs = np.log(positive) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1)) - float(special.polygamma(1, degrees / 2))
    floor = float(special.polygamma(1, limit / 2))
    if excess <= floor:
        prior = limit
    else:
        prior = float(optimize.brentq(lambda d: float(special.polygamma(1, d / 2)) - excess, 1e-3, limit))
    center = float(logs.mean()) + float(special.digamma(prior / 2)) - np.log(prior / 2)
    return float(np.exp(center)), prior


def _pair_variances(methods: list[Sampled]) -> dict[tuple[int, int], Variance]:
    points = [method.points() for method in methods]
    influence = [method.influence() for method in methods]
    return {
        (first, second): variance_of(paired(influence[first], influence[second]), paired(points[first], points[second]))
        for first in range(len(methods))
        for second in range(first + 1, len(methods))
    }


def _pairs(methods: list[Sampled]) -> _Pairs:
    count = len(methods)
    means = np.array([float(method.points().mean()) for method in methods])
    shape = (count, count)
    examples, spreads, interaction, degrees = (np.zeros(shape) for _ in range(4))
    seeds = np.ones(shape)
    variances = _pair_variances(methods)
    most = max((variance.degrees for variance in variances.values()), default=0)
    measured = np.array([variance.spread for variance in variances.values() if variance.degrees == most])
    center, prior = prior_of_variances(measured, most, (count - 1) * most) if most else (0.0, 0.0)
    for (first, second), variance in variances.items():
        own, spread, freedom = variance.degrees, variance.spread, float(variance.degrees)
        if own == most and own > 0:
            spread, freedom = (prior * center + own * spread) / (prior + own), prior + own
        for i, j in ((first, second), (second, first)):
            examples[i, j], spreads[i, j], interaction[i, j] = variance.examples, spread, variance.interaction
            degrees[i, j], seeds[i, j] = freedom, own + 1
    return _Pairs(means[:, None] - means[None, :], examples, spreads, interaction, degrees, seeds)


def _chances_per_look(pairs: _Pairs, level: float, seed: int) -> Floats:
    """For each method, `a` such that the largest normal difference of its rivals passes z(a) with chance 1 - level."""
    count = len(pairs.difference)
    total = pairs.total
    generator = np.random.default_rng(seed)
    chances = np.full(count, 1 - level)
    for i in range(count):
        rivals = np.array([j for j in range(count) if j != i and total[i, j] > 0])
        if rivals.size < 2:
            continue
        own = total[i, rivals]
        # cov(x_j - x_i, x_k - x_i) = (v_ij + v_ik - v_jk) / 2
        covariance = (own[:, None] + own[None, :] - total[np.ix_(rivals, rivals)]) / 2
        scale = np.sqrt(own)
        correlation = np.clip(covariance / scale[:, None] / scale[None, :], -1, 1)
        values, vectors = np.linalg.eigh(correlation)
        root = vectors * np.sqrt(np.maximum(values, 0))
        root /= np.linalg.norm(root, axis=1, keepdims=True)
        largest = (generator.standard_normal((_DRAWS, rivals.size)) @ root.T).max(axis=1)
        simulated = 1 - float(special.ndtr(np.quantile(largest, level)))
        chances[i] = np.clip(simulated, (1 - level) / rivals.size, 1 - level)  # never stricter than Bonferroni
    return chances


def compare(
    methods: Mapping[str, Sampled],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    seedless: Collection[str] = (),
) -> Comparison:
    """Scores with intervals, paired differences to the best, and the methods that may be the best.

    Args:
        methods: results on the same test examples; seeds are paired in order.
        level: confidence that the truly best method is among those kept.
        seedless: methods whose score does not depend on a seed, so that one is all there is to run.

    Raises:
        UserError: no methods, or different numbers of test examples.
    """
    _check_level(level)
    if not methods:
        raise UserError("no results to compare: no trial has finished with predictions.")
    sizes = {name: method.examples for name, method in methods.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the methods were tested on different numbers of examples: {sizes}.")
    names, results = list(methods), list(methods.values())
    counts = draw_counts(results[0].examples, resamples, seed)
    scores = [score_interval(result, level, counts=counts) for result in results]
    pairs = _pairs(results)
    chances = _chances_per_look(pairs, level, seed)
    order = sorted(range(len(names)), key=lambda index: (-scores[index].value, names[index]))
    standings = tuple(_standing(index, order[0], names, scores, pairs, chances, level) for index in order)
    needed = _needed(order, standings, pairs, scores, level)
    explanation = _explanation(len(standings), level)
    verdict = _verdict(standings, level)
    sentence = f"{verdict} {explanation}" if len(standings) > 1 else verdict
    return Comparison(standings, level, sentence, explanation, _warnings(standings, needed, seedless), needed)


def _standing(
    index: int,
    best: int,
    names: list[str],
    scores: list[Interval],
    pairs: _Pairs,
    chances: NDArray[np.float64],
    level: float,
) -> Standing:
    worst, beaten_by, chance = 1.0, None, float(chances[index])
    for rival in range(len(names)):
        if rival == index:
            continue
        p_value = pairs.p_value(rival, index)
        if p_value < worst:
            worst = p_value
            beaten_by = names[rival] if p_value < chance else None
    corrected = min(1.0, worst * (1 - level) / chance) if worst < 0.5 else 1.0
    difference = float(pairs.difference[index, best])
    half = 0.0 if index == best else pairs.half_width(chance, best, index)
    return Standing(
        names[index], scores[index], difference, difference - half, difference + half, corrected,
        beaten_by is None, beaten_by,
    )  # fmt: skip


def _needed(
    order: list[int], standings: tuple[Standing, ...], pairs: _Pairs, scores: list[Interval], level: float
) -> NeededSize | None:
    if len(order) < 2 or not standings[1].may_be_best:
        return None
    best, second = order[0], order[1]
    return size_from_variance(
        difference=abs(float(pairs.difference[best, second])),
        examples_variance=float(pairs.examples[best, second]),
        seeds_variance=float(pairs.total[best, second] - pairs.examples[best, second]),
        examples=scores[best].examples,
        seeds=min(scores[best].seeds, scores[second].seeds),
        level=level,
        names=(standings[0].method, standings[1].method),
    )


def _verdict(standings: tuple[Standing, ...], level: float) -> str:
    kept = [standing.method for standing in standings if standing.may_be_best]
    if len(standings) == 1:
        return f"Only {kept[0]} was run, so there is nothing to compare it with."
    if len(kept) == 1:
        return f"{kept[0]} is the best of {len(standings)} methods with {level:.0%} confidence."
    others = ", ".join(kept[1:])
    return (
        f"{kept[0]} scored highest, but cannot be told apart from {others}: with {level:.0%} confidence the best "
        f"method is one of these {len(kept)} of {len(standings)}."
    )


def _explanation(methods: int, level: float) -> str:
    """What guards against a lucky winner, for someone who has not met multiple comparisons before."""
    promise = f"in {level * 100:.0f} of 100 such studies the truly best method is not ruled out"
    if methods < 2:
        return ""
    if methods == 2:
        return f"The two were held against each other on the same test rows, and {promise}."
    return (
        f"Among {methods} methods one or another is lucky, so the more are compared, the larger a gap must be to count: "
        f"here it is set so that {promise}."
    )


def _warnings(standings: tuple[Standing, ...], needed: NeededSize | None, seedless: Collection[str]) -> tuple[str, ...]:
    warnings = [needed.sentence] if needed is not None else []
    seeded = [standing for standing in standings if standing.method not in seedless]
    single = [standing.method for standing in seeded if standing.score.seeds == 1]
    if single and len(single) < len(seeded):
        warnings.append(f"{', '.join(single)} ran with one seed only: the score may change with another.")
    elif single:
        warnings.append(
            "Every method ran with one seed: the intervals know nothing of how scores change with the seed."
        )
    return tuple(warnings)
