"""Which methods may be the best: those that no other one beats by more than chance explains.

For each method i, the rivals j are held against it on the same examples and seeds. With M methods one looks M - 1
times, and the luckiest of many rivals looks better than it is; so each look gets a smaller chance of error, such that
all looks together keep the promise:

    i is left out if, for some j:   d_ji > sqrt( z(a)^2 v + max(0, t(a, df)^2 s^2 - z(a)^2 r/N) / S )
                                    and, where few rows differ, the exact test of these rows says the same (`exact`)

    d, v      difference of the mean scores, its variance over examples
    s^2, r/N  variance of the difference over seeds, and the part of it that stands in v (see `intervals`)
    a         one-sided chance per look, found so that the largest of the M - 1 differences, which move together because
              all are taken against i on the same examples, passes z(a) with chance 1 - level (a max-t correction)
    df        S - 1, plus what the other pairs' seed variances teach about this one's (a moderated t)

Then the truly best method is in the set with at least the promised confidence, however many methods were tried. With two
methods, where what leaves one out calls the other the best, the look is two-sided: of two equally good ones none should be
called the best in more than 5 of 100 studies, and one-sided looks let it be in 10. With three and more, all rivals of a method
must be left out at once, which equal methods hardly ever do (`bench/stats_coverage.py`).

With one seed the variance over seeds is not known at all. What is left out then is left out on those seeds, and nothing is
called the best: `Comparison.conditional`.

Three seeds alone know little about their variance (df = 2). The pairs' variances are therefore shrunk towards their
common value as far as they agree with each other, by an inverse chi-square prior fitted to them. Where methods differ
in stability (prompt tuning may), the prior is weak and each pair stands on its own. The prior's degrees of freedom are
capped at (M - 1)(S - 1), what the seeds of all methods hold in total.

Seeds are paired where seed k of every method has the same training rows, whose luck then cancels in the difference. Where all
seeds train on the same rows, nothing is shared that pairing could cancel, and of two methods it would throw away half of what the
seeds tell of their spread. Their seeds then are two samples, and one is left out if

    d > t(a, df) sqrt( v + max(0, s_1^2 + s_2^2 - r/N) / S )

with the degrees of freedom of a sum of variances (Welch, Satterthwaite). With three seeds that finds a gap of four points half as
often again. It is not done for paired seeds: with the two degrees that these have, the approximation lets equal methods differ in
7 of 100 studies, and the quadrature above in 5 at most. Nor for more than two methods, where shrinking the pairs' variances is
worth as many degrees, and both at once would be too sure of methods that differ in stability (`bench/stats_coverage.py`).

Source: subset of the best: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the
best", 1984. Moderated variances: Smyth, "Linear models and empirical Bayes methods", 2004, equations 4 to 6.
Quadrature: Banerjee 1961, as in `intervals`. Degrees of freedom of sums: Satterthwaite, "An approximate distribution of estimates
of variance components", 1946, equation 17.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from dollartune.errors import UserError
from dollartune.format import listed
from dollartune.stats.exact import RowsThatDiffer, rows_that_differ
from dollartune.stats.intervals import (
    RESAMPLES,
    Interval,
    _check_level,
    difference_interval,
    draw_counts,
    few_groups,
    one_unit,
    score_intervals,
    units_of,
)
from dollartune.stats.outcomes import Outcomes
from dollartune.stats.size import NeededSize, size_from_variance, smallest_shown

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Sampled

Indices = NDArray[np.intp]
# Drawn once per comparison. Their 2 % error in `a` moves a bound by less than 0.5 %.
_DRAWS = 20_000
"""Normal draws behind the max-t correction; its error in `a` is about 2 % of `a`."""
_SAME_DIGITS = 9
"""Scores that agree to so many digits are equal: summed in another order, equal answers differ in the sixteenth."""


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
    probability: float | None = None
    """That it is the best of those compared, for someone who knew nothing of them before; None for a baseline."""


@dataclass(frozen=True)
class AgainstBaseline:
    """A method held against what every method should beat, on the same test examples."""

    method: str
    baseline: str
    difference: float
    """Method minus baseline."""
    low: float
    high: float
    """Paired interval, widened for the number of methods that are held against the baseline."""

    @property
    def above(self) -> bool:
        """More than luck explains; a method that is not has shown nothing beyond the baseline."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """The baseline is better, and that is more than luck."""
        return self.high < 0


@dataclass(frozen=True)
class Comparison:
    """All methods on one task, best observed first."""

    standings: tuple[Standing, ...]
    """Of the methods that are compared; baselines are none of them."""
    level: float
    sentence: str
    """The result for a newcomer, with how many comparisons were made and what was done about it."""
    explanation: str
    """The second half of it alone: what guards against a lucky winner, in one sentence."""
    warnings: tuple[str, ...]
    needed: NeededSize | None
    """Test examples that would tell the best two apart, when these do not."""
    baselines: tuple[Standing, ...] = ()
    """What every method should beat, highest score first; never called the best."""
    against: tuple[AgainstBaseline, ...] = ()
    """Each method against each baseline."""
    conditional: bool = False
    """Whether a method that another seed would change ran with one: what is said holds for these seeds only."""
    smallest: float | None = None
    """The smallest true difference between two methods that this design shows 80 times in 100; None with one method."""
    rows_that_differ: RowsThatDiffer | None = None
    """Between the two highest scores, where these are so few that the exact test decides."""

    @property
    def best(self) -> str:
        """The method with the highest observed score."""
        return self.standings[0].method

    @property
    def highest(self) -> tuple[str, ...]:
        """The method with the highest observed score, and those that score the same."""
        return _highest(self.standings)

    @property
    def winner(self) -> str | None:
        """The method that is best by more than luck explains, over rows and seeds; None where that cannot be told."""
        kept = self.indistinguishable
        return kept[0] if len(kept) == 1 and len(self.standings) > 1 and not self.conditional else None

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The best observed method and all that cannot be told apart from it."""
        return tuple(standing.method for standing in self.standings if standing.may_be_best)

    def held_against(self, baseline: str) -> tuple[AgainstBaseline, ...]:
        """Every method against one baseline, in the order of the standings."""
        return tuple(one for one in self.against if one.baseline == baseline)

    def __getitem__(self, method: str) -> Standing:
        for standing in (*self.standings, *self.baselines):
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
    paired_seeds: bool = True
    """Whether seed k of one method is held against seed k of the other; else each method's seeds are a sample of their own."""

    @property
    def total(self) -> Floats:
        """Variance of the difference of the means."""
        beyond: Floats = np.maximum(self.spread - self.interaction, 0) / self.count
        return self.examples + beyond

    def half_widths(self, chances: Floats, rows: Indices, columns: Indices) -> Floats:
        """Of many pairs at once, each with its one-sided chance of error."""
        normal = special.ndtri(1 - chances)
        degrees = self.degrees[rows, columns]
        if not self.paired_seeds:
            total = self.total[rows, columns]
            of_seeds = self.spread[rows, columns] / self.count[rows, columns]
            known = (of_seeds > 0) & (degrees > 0)
            # Rows have hundreds of degrees: what is uncertain in the sum is the part of the seeds.
            summed = np.divide(degrees * total**2, of_seeds**2, out=np.full_like(total, np.inf), where=known)
            factor = np.where(known, special.stdtrit(np.clip(summed, 1e-9, 1e9), 1 - chances), normal)
            return np.asarray(factor * np.sqrt(total))
        # Student's factor is slow, and the pairs of one method share its chance and mostly its degrees of freedom.
        both, back = np.unique(np.stack([chances, degrees]), axis=1, return_inverse=True)
        student = special.stdtrit(np.maximum(both[1], 1e-9), 1 - both[0])[back.reshape(-1)]
        by_seeds = student**2 * self.spread[rows, columns] - normal**2 * self.interaction[rows, columns]
        by_seeds = np.where(degrees > 0, np.maximum(0.0, by_seeds) / self.count[rows, columns], 0.0)
        widths: Floats = np.sqrt(normal**2 * self.examples[rows, columns] + by_seeds)
        return widths

    def p_values(self) -> tuple[Floats, Indices]:
        """For each method the smallest one-sided chance at which a rival's lead equals its half-width, and that rival.

        A method that nobody leads has 0.5 and -1. All methods are halved at once on a scale of logarithms. A rival that
        is not ahead of its half-width at a chance can only have a larger one, so it leaves for good wherever another
        stays: of M rivals few are left after two or three steps.
        """
        methods = len(self.difference)
        rows, columns = np.nonzero(self.difference > 0)
        # Below 1e-15, 1 - chance rounds to 1 and the normal quantile to infinity.
        low, high = np.full(methods, np.log(1e-15)), np.full(methods, np.log(0.5))
        worst, rival = np.full(methods, 0.5), np.full(methods, -1)

        def ahead(logs: Floats) -> NDArray[np.bool_]:
            widths = self.half_widths(np.exp(logs[columns]), rows, columns)
            passed: NDArray[np.bool_] = widths < self.difference[rows, columns]
            return passed

        # Ahead at 1e-15 and beyond is 0: the largest lead in half-widths then counts as the rival.
        certain = ahead(low)
        for column in np.unique(columns[certain]):
            here = certain & (columns == column)
            widths = self.half_widths(np.full(int(here.sum()), 1e-15), rows[here], columns[here])
            leads = self.difference[rows[here], columns[here]] - widths
            worst[column], rival[column] = 0.0, rows[here][int(leads.argmax())]
        open_pairs = ~np.isin(columns, columns[certain])
        rows, columns = rows[open_pairs], columns[open_pairs]
        # 45 halvings of a range of 34 leave 1e-12 of the chance.
        for _ in range(45 if rows.size else 0):
            middle = (low + high) / 2
            passed = ahead(middle)
            lowered = np.zeros(methods, dtype=bool)
            lowered[columns[passed]] = True
            high, low = np.where(lowered, middle, high), np.where(lowered, low, middle)
            stays = passed | ~lowered[columns]
            rows, columns = rows[stays], columns[stays]
        for row, column in zip(rows[::-1], columns[::-1], strict=True):  # of equal ones the first
            worst[column], rival[column] = float(np.exp(high[column])), row
        return worst, rival


def prior_of_variances(variances: Floats, degrees: int, limit: float) -> tuple[float, float]:
    """The common value of sample variances and how many degrees of freedom their agreement is worth.

        log s^2 has mean log s0^2 + digamma(d/2) - digamma(d0/2) + log(d0/d) and variance trigamma(d/2) + trigamma(d0/2)

    Returns:
        s0^2 and d0 (0: no agreement beyond chance to learn from; at most `limit`).
    """
    positive = variances[variances > 0]
    # Two variances always agree with some common value; agreement can be judged from three on.
    if positive.size < 3:
        return 0.0, 0.0
    logs = np.log(positive) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1)) - float(special.polygamma(1, degrees / 2))
    # trigamma falls: spread below this value would mean more degrees of freedom than the seeds hold.
    floor = float(special.polygamma(1, limit / 2))
    if excess <= floor:
        prior = limit
    else:
        prior = float(optimize.brentq(lambda d: float(special.polygamma(1, d / 2)) - excess, 1e-3, limit))
    center = float(logs.mean()) + float(special.digamma(prior / 2)) - np.log(prior / 2)
    return float(np.exp(center)), prior


def _pair_variances(methods: list[Sampled]) -> _Pairs:
    """Variances of all pairs, before they are moderated.

    Everything is quadratic in the difference of two methods' pseudo-values, so that all pairs come from products of
    matrices, |a - b|^2 = |a|^2 + |b|^2 - 2 ab, in blocks of methods with equally many seeds. `variance_of(paired(..))`
    says the same of one pair.
    """
    count = len(methods)
    points = [method.points() for method in methods]
    influence = [method.influence() for method in methods]
    means = np.array([float(point.mean()) for point in points])
    examples, spread, interaction, degrees = (np.zeros((count, count)) for _ in range(4))
    by_seeds: dict[int, list[int]] = {}
    for index, point in enumerate(points):
        by_seeds.setdefault(len(point), []).append(index)
    for mine, firsts in by_seeds.items():
        for theirs, seconds in by_seeds.items():
            # One seed alone is held against each seed of the other, else the first ones are paired.
            seeds = max(mine, theirs) if min(mine, theirs) == 1 else min(mine, theirs)
            a = _quadratics(
                np.stack([influence[i][:seeds] for i in firsts]), np.stack([points[i][:seeds] for i in firsts])
            )
            b = _quadratics(
                np.stack([influence[j][:seeds] for j in seconds]), np.stack([points[j][:seeds] for j in seconds])
            )
            groups = a.of_examples.shape[1]
            block = np.ix_(firsts, seconds)
            if groups < 2:
                continue
            examples[block] = _squared(a.of_examples, b.of_examples) / (groups - 1) / groups
            degrees[block] = seeds - 1
            if seeds > 1:
                spread[block] = _squared(_wide(a.points, seeds), _wide(b.points, seeds)) / (seeds - 1)
                rests = _squared(_wide(a.rest, seeds * groups), _wide(b.rest, seeds * groups))
                interaction[block] = rests / ((seeds - 1) * (groups - 1)) / groups
    for matrix in (examples, spread, interaction):
        np.fill_diagonal(matrix, 0.0)  # what rounding leaves
    examples *= few_groups(methods[0], 0.95) ** 2
    difference = np.round(means[:, None] - means[None, :], _SAME_DIGITS)
    return _Pairs(difference, examples, spread, interaction, degrees, degrees + 1)


@dataclass(frozen=True)
class _Quadratics:
    """Of M methods with equally many seeds: what is squared when two are held against each other."""

    of_examples: Floats
    """`(M, G)`: means over seeds, centered."""
    points: Floats
    """`(M, S)`: seeds' scores, centered."""
    rest: Floats
    """`(M, S * G)`: what is neither the seed's nor the example's."""


def _quadratics(influence: Floats, points: Floats) -> _Quadratics:
    of_examples, of_seeds = influence.mean(axis=1, keepdims=True), influence.mean(axis=2, keepdims=True)
    overall = influence.mean(axis=(1, 2), keepdims=True)
    rest = influence - of_examples - of_seeds + overall
    return _Quadratics(
        (of_examples - overall)[:, 0], points - points.mean(axis=1, keepdims=True), rest.reshape(len(rest), -1)
    )


def _wide(values: Floats, width: int) -> Floats:
    """A method with one seed has no spread and no rest: zeros of the other's width."""
    return values if values.shape[1] == width else np.zeros((len(values), width))


def _squared(first: Floats, second: Floats) -> Floats:
    """|a - b|^2 for all pairs, `(M, M')`."""
    product = first @ second.T
    squared: Floats = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * product
    # What rounding leaves of two equal methods is no variance: 1e-12 of the terms.
    scale = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :]
    return np.where(squared > 1e-12 * scale, squared, 0.0)


def _pairs(methods: list[Sampled], paired_seeds: bool = True) -> _Pairs:
    pairs = _pair_variances(methods)
    # Of three methods and more the pairs tell of each other's spread (below), and these are worth as many degrees.
    if not paired_seeds and len(methods) == 2:
        return _with_own_seeds(pairs, methods)
    upper = np.triu_indices(len(methods), 1)
    most = int(pairs.degrees[upper].max(initial=0.0))
    if not most:
        return pairs
    measured = pairs.spread[upper][pairs.degrees[upper] == most]
    center, prior = prior_of_variances(measured, most, (len(methods) - 1) * most)
    moderated = (pairs.degrees == most) & ~np.eye(len(methods), dtype=bool)
    spread = np.where(
        moderated,
        (prior * center + pairs.degrees * pairs.spread) / (np.maximum(prior + pairs.degrees, 1)),
        pairs.spread,
    )
    return replace(pairs, spread=spread, degrees=pairs.degrees + np.where(moderated, prior, 0.0))


def _with_own_seeds(pairs: _Pairs, methods: list[Sampled]) -> _Pairs:
    """The variance over seeds of the difference of two methods as the sum of their own, which has Welch's degrees of freedom."""
    points = [method.points() for method in methods]
    own = np.array([float(point.var(ddof=1)) if len(point) > 1 else 0.0 for point in points])
    degrees = np.array([max(1, len(point) - 1) for point in points])
    # s^4 / df of a sum is the sum of its parts' s^4 / df; a method with one seed, whose spread is not known, adds nothing.
    uncertain = float((own**2 / degrees).sum())
    other = 1 - np.eye(2)
    summed = float(own.sum()) ** 2 / uncertain if uncertain > 0 else 0.0
    return replace(pairs, spread=float(own.sum()) * other, degrees=summed * other, paired_seeds=False)


def _chances_per_look(pairs: _Pairs, level: float, seed: int) -> Floats:
    """For each method, `a` such that the largest normal difference of its rivals passes z(a) with chance 1 - level.

    All methods' scores are drawn together (`_root`).
    """
    total, count = pairs.total, len(pairs.difference)
    rivals = (total > 0) & ~np.eye(count, dtype=bool)
    # With two there is one difference, and its largest is itself.
    if count < 3:
        return np.full(count, (1 - level) / 2)
    chances = np.full(count, 1 - level)
    root = _root(total).astype(np.float32)  # fp32: draws know `a` to two digits
    scale = np.sqrt(_squared(root.astype(np.float64), root.astype(np.float64))).astype(np.float32)
    # Some 2e9 differences take a few seconds; beyond 300 methods fewer draws do, and `a` is known to 5 % and not to 2 %.
    draws = int(np.clip(2e9 / count**2, 3_000, _DRAWS))
    drawn = (np.random.default_rng(seed).standard_normal((draws, count), dtype=np.float32) @ root.T).T.copy()
    for i in range(count):
        others = np.flatnonzero(rivals[i] & (scale[i] > 0))
        if others.size < 2:
            continue
        largest = np.full(draws, -np.inf, dtype=np.float32)
        for j in others:
            np.maximum(largest, (drawn[j] - drawn[i]) / scale[i, j], out=largest)
        simulated = 1 - float(special.ndtr(np.quantile(largest, level)))
        chances[i] = np.clip(simulated, (1 - level) / others.size, 1 - level)  # never stricter than Bonferroni
    return chances


def _root(variances: Floats) -> Floats:
    """`(M, M)` R such that rows of R z have differences of these variances, z standard normal.

    All methods' scores are drawn together, x ~ N(0, C), with C = -1/2 (I - 1/M) V (I - 1/M): the covariance whose
    differences have the variances v_ij (classical scaling, Torgerson 1952). Then
    cov(x_j - x_i, x_k - x_i) = (v_ij + v_ik - v_jk) / 2, as for each i alone, with one decomposition and not M.
    """
    centered = variances - variances.mean(axis=0) - variances.mean(axis=1)[:, None] + variances.mean()
    values, vectors = np.linalg.eigh(-centered / 2)
    # Estimated variances need not fit together, so C may have small negative eigenvalues.
    root: Floats = vectors * np.sqrt(np.maximum(values, 0))
    return root


def drawn_scores(pairs: _Pairs, draws: int, seed: int) -> Floats:
    """`(M, draws)`: where the true scores may lie, up to a common shift, given what was observed (a flat prior).

    Rows contribute a normal, seeds a t whose degrees of freedom are those of the moderated variances.
    """
    chance = np.random.default_rng(seed)
    means = pairs.difference.mean(axis=1)
    drawn: Floats = means[:, None] + _root(pairs.examples) @ chance.standard_normal((len(means), draws))
    degrees = float(pairs.degrees[pairs.degrees > 0].min(initial=np.inf))
    if np.isfinite(degrees):
        by_seeds = np.maximum(pairs.spread - pairs.interaction, 0) / pairs.count
        wider = np.sqrt(degrees / chance.chisquare(degrees, draws))
        drawn += _root(by_seeds) @ chance.standard_normal((len(means), draws)) * wider
    return drawn


def _best_of(pairs: _Pairs, seed: int) -> Floats:
    """`(M,)`: for each method the share of draws in which it is the best; equal ones share."""
    count = len(pairs.difference)
    if count == 1:
        return np.ones(1)
    # Some 5e6 draws take half a second; beyond 250 methods fewer do, and a probability is known to one in a hundred.
    drawn = drawn_scores(pairs, int(np.clip(5e6 / count, 2_000, _DRAWS)), seed + 1)
    # Two methods of the same answers are drawn equal but for rounding.
    first = drawn >= drawn.max(axis=0) - 1e-9
    shares: Floats = (first / first.sum(axis=0)).mean(axis=1)
    return shares


def compare(
    methods: Mapping[str, Sampled],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    seedless: Collection[str] = (),
    baselines: Mapping[str, Sampled] | None = None,
    paired_seeds: bool = True,
) -> Comparison:
    """Scores with intervals, paired differences to the best, and the methods that may be the best.

    Args:
        methods: results on the same test examples; seeds are paired in order.
        level: confidence that the truly best method is among those kept.
        seedless: methods whose score does not depend on a seed, so that one is all there is to run.
        baselines: what every method is held against, on the same test examples; they take no part in who is the best.
        paired_seeds: whether seed k of every method shares what differs from seed to seed, as its training rows; if all seeds
            have the same training rows, False tells two methods apart more often.

    Raises:
        UserError: no methods, or different numbers of test examples.
    """
    _check_level(level)
    if not methods:
        raise UserError("no results to compare: no trial has finished with predictions.")
    beside = baselines or {}
    sizes = {name: method.examples for name, method in {**methods, **beside}.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the methods were tested on different numbers of examples: {sizes}.")
    names, results = list(methods), list(methods.values())
    counts = draw_counts(results[0].examples, resamples, seed, results[0].groups)
    scores = score_intervals(results, level, counts)
    pairs = _pairs(results, paired_seeds)
    chances = _chances_per_look(pairs, level, seed)
    # Ties by name, so that the order does not depend on which trial finished first.
    order = sorted(range(len(names)), key=lambda index: (-round(scores[index].value, _SAME_DIGITS), names[index]))
    # All methods against all rivals, not against the best observed alone, which may be the lucky one.
    worst, rivals = pairs.p_values()
    exact = _where_few_rows_differ(results, pairs, worst, rivals, chances)
    to_best = pairs.half_widths(chances, np.full(len(names), order[0]), np.arange(len(names)))
    probabilities = _best_of(pairs, seed)
    alone = units_of(results[0]) == 1
    if alone:  # nothing varies, and nothing is known of other rows
        low, high = results[0].bounds or (0.0, np.inf)
        to_best, probabilities = np.full(len(names), high - low), np.full(len(names), 1 / len(names))
        worst, rivals, exact = np.full(len(names), 0.5), np.full(len(names), -1), set()
    standings = []
    for index in order:
        difference, half = float(pairs.difference[index, order[0]]), float(to_best[index])
        if index in exact and worst[index] >= chances[index]:
            half = max(half, -difference)  # what the exact test does not exclude, the interval does not either
        standings.append(
            _standing(
                names[index], scores[index], difference, 0.0 if index == order[0] else half, float(worst[index]),
                names[rivals[index]] if rivals[index] >= 0 else None, float(chances[index]), level,
                float(probabilities[index]),
            )
        )  # fmt: skip
    single = [one.method for one in standings if one.score.seeds == 1 and one.method not in seedless]
    needed = None if alone else _needed(order, tuple(standings), pairs, scores, level)
    differ = _first_two(results, order)
    smallest = _smallest(pairs, chances) if len(names) > 1 and not alone else None
    explanation = _explanation(len(standings), level)
    verdict = _verdict(tuple(standings), level, single, set(names) - set(seedless))
    sentence = f"{verdict} {explanation}" if len(standings) > 1 else verdict
    warnings = _warnings(tuple(standings), needed, single, set(seedless), differ, smallest, methods)
    beside_methods = _baseline_standings(methods, beside, names[order[0]], level, counts, seed)
    against = _against_baselines(methods, beside, [one.method for one in standings], level, resamples, seed)
    return Comparison(
        tuple(standings),
        level,
        sentence,
        explanation,
        warnings,
        needed,
        beside_methods,
        against,
        bool(single),
        smallest,
        differ,
    )


def _where_few_rows_differ(
    results: list[Sampled], pairs: _Pairs, worst: Floats, rivals: Indices, chances: Floats
) -> set[int]:
    """Holds each method that is about to be left out against the exact test; changes `worst` and `rivals` of those.

    Any rival whose lead is large enough may leave a method out; it stays where for each of them few rows differ and these may
    be luck.

    Returns:
        the methods whose fate the exact test decided.
    """
    decided = set()
    for index in np.flatnonzero(worst < chances):
        ahead = np.flatnonzero(pairs.difference[:, index] > 0)
        widths = pairs.half_widths(np.full(ahead.size, chances[index]), ahead, np.full(ahead.size, index))
        ahead = ahead[widths < pairs.difference[ahead, index]]
        # The rival found first is mostly far enough ahead, on many rows.
        smallest, by = 1.0, int(rivals[index])
        for rival in sorted(ahead, key=lambda one: (one != rivals[index], -pairs.difference[one, index])):
            first, second = results[rival], results[index]
            both = isinstance(first, Outcomes) and isinstance(second, Outcomes)
            differ = rows_that_differ(first, second) if both else None  # type: ignore[arg-type]
            chance = 0.0 if differ is None or not differ.few else differ.p_value
            if chance < smallest:
                smallest, by = chance, int(rival)
            if smallest < chances[index]:
                break
        if smallest > worst[index]:
            decided.add(int(index))
            worst[index], rivals[index] = min(smallest, 0.5), by
    return decided


def _first_two(results: list[Sampled], order: list[int]) -> RowsThatDiffer | None:
    if len(order) < 2:
        return None
    first, second = results[order[0]], results[order[1]]
    if not (isinstance(first, Outcomes) and isinstance(second, Outcomes)):
        return None
    differ = rows_that_differ(first, second)
    return differ if differ is not None and differ.few else None


def _smallest(pairs: _Pairs, chances: Floats) -> float | None:
    """Of all pairs the median, as some pairs answer almost alike and others not."""
    rows, columns = np.triu_indices(len(pairs.difference), 1)
    if rows.size > 5_000:  # of a thousand methods some pairs are enough for a median
        rows, columns = rows[:: rows.size // 5_000], columns[:: columns.size // 5_000]
    widths = pairs.half_widths(np.minimum(chances[rows], chances[columns]), rows, columns)
    shown = smallest_shown(widths, np.sqrt(pairs.total[rows, columns]))
    shown = shown[shown > 0]
    return float(np.median(shown)) if shown.size else None


def _baseline_standings(
    methods: Mapping[str, Sampled],
    baselines: Mapping[str, Sampled],
    best: str,
    level: float,
    counts: NDArray[np.float32],
    seed: int,
) -> tuple[Standing, ...]:
    """Scores of baselines, each with its paired difference to the best method."""
    standings = []
    for name, score in zip(baselines, score_intervals(list(baselines.values()), level, counts), strict=True):
        gap = difference_interval(baselines[name], methods[best], level, len(counts), seed)
        standings.append(Standing(name, score, gap.value, gap.low, gap.high, 1.0, False, None))
    return tuple(sorted(standings, key=lambda one: (-round(one.score.value, _SAME_DIGITS), one.method)))


def _against_baselines(
    methods: Mapping[str, Sampled],
    baselines: Mapping[str, Sampled],
    order: list[str],
    level: float,
    resamples: int,
    seed: int,
) -> tuple[AgainstBaseline, ...]:
    """Bonferroni's level for each look: of many methods at chance none should stand above it by luck."""
    # Not the max-t correction: a handful of looks at one baseline lose little by Bonferroni, and need no draws.
    each = 1 - (1 - level) / len(order)
    compared = []
    for baseline, outcomes in baselines.items():
        for name in order:
            gap = difference_interval(methods[name], outcomes, each, resamples, seed)
            compared.append(AgainstBaseline(name, baseline, gap.value, gap.low, gap.high))
    return tuple(compared)


def _standing(
    name: str,
    score: Interval,
    difference: float,
    half: float,
    worst: float,
    rival: str | None,
    chance: float,
    level: float,
    probability: float,
) -> Standing:
    # The chance per look is the method's own: it depends on how its differences move together.
    beaten_by = rival if worst < chance else None
    corrected = min(1.0, worst * (1 - level) / chance) if worst < 0.5 else 1.0
    return Standing(
        name,
        score,
        difference,
        difference - half,
        difference + half,
        corrected,
        beaten_by is None,
        beaten_by,
        probability,
    )


def _needed(
    order: list[int], standings: tuple[Standing, ...], pairs: _Pairs, scores: list[Interval], level: float
) -> NeededSize | None:
    # The best two are told apart, so no larger test set is wanted.
    if len(order) < 2 or not standings[1].may_be_best:
        return None
    best, second = order[0], order[1]
    needed = size_from_variance(
        difference=abs(float(pairs.difference[best, second])),
        examples_variance=float(pairs.examples[best, second]),
        seeds_variance=float(pairs.total[best, second] - pairs.examples[best, second]),
        examples=scores[best].examples,
        seeds=min(scores[best].seeds, scores[second].seeds),
        level=level,
        names=(standings[0].method, standings[1].method),
    )
    if needed.examples is None or needed.examples > scores[best].examples:
        return needed
    # The size is that of a normal test of one pair, which is easier to pass than what was asked here.
    among = f", few rows that differ and {len(order)} methods" if len(order) > 2 else " and few rows that differ"
    return replace(
        needed,
        sentence=f"{standings[0].method} and {standings[1].method} differ by {needed.difference:.3f} on "
        f"{scores[best].examples:,} test rows: a normal test of this pair alone would tell them apart; this one, which allows "
        f"for few seeds{among}, does not.",
    )


def _highest(standings: tuple[Standing, ...]) -> tuple[str, ...]:
    return tuple(one.method for one in standings if one.difference == 0)


def _verdict(standings: tuple[Standing, ...], level: float, single: list[str], seeded: set[str]) -> str:
    kept = [standing.method for standing in standings if standing.may_be_best]
    if len(standings) == 1:
        return f"Only {kept[0]} was run, so there is nothing to compare it with."
    alike = _highest(standings)
    highest, rest = listed(alike), listed(kept[len(alike) :])
    tied = len(alike) > 1
    scored, them = ("tie for the highest score", "them") if tied else ("scored highest", "it")
    if single:
        which = "With one seed each" if len(single) == len(seeded) else f"With one seed of {', '.join(single)}"
        if len(kept) > 1:
            more = f", and the test rows do not tell {them} from {rest}" if rest else ""
            return f"{which}, {highest} {scored}{more}; other seeds may rank all {len(standings)} otherwise."
        return (
            f"{which}, {highest} scored highest of {len(standings)} methods, by more than luck with the test rows explains; "
            "other seeds may rank them otherwise, so none is called the best."
        )
    if len(kept) == 1:
        return f"{highest} is the best of {len(standings)} methods with {level:.0%} confidence."
    more = f" cannot be told apart from {rest}" if rest else " cannot be told apart"
    return (
        f"{highest} {scored}{' and' if tied else ', but'}{more}: with {level:.0%} confidence the best "
        f"method is one of these {len(kept)} of {len(standings)}."
    )


def _explanation(methods: int, level: float) -> str:
    """What guards against a lucky winner, in one sentence."""
    if methods < 2:
        return ""
    if methods == 2:
        return f"The two were compared row by row on the same test rows ({level:.0%} interval)."
    return f"Intervals of differences are corrected for comparing {methods} methods ({level:.0%} family-wise)."


def _warnings(
    standings: tuple[Standing, ...],
    needed: NeededSize | None,
    single: list[str],
    seedless: set[str],
    differ: RowsThatDiffer | None,
    smallest: float | None,
    methods: Mapping[str, Sampled],
) -> tuple[str, ...]:
    warnings = [needed.sentence] if needed is not None else []
    first = methods[standings[0].method]
    if units_of(first) == 1:
        warnings.append(
            f"There {'is' if first.examples == 1 else 'are'} {one_unit(first)}: nothing is known of others."
        )
    unit = "groups of rows" if first.groups is not None else "test rows"
    if differ is not None and differ.won + differ.lost:
        names = f"{standings[0].method} and {standings[1].method}"
        warnings.append(
            f"{names} differ on {differ.won + differ.lost} {unit} ({differ.won} to {differ.lost}): exact test, "
            f"p = {min(1.0, 2 * differ.p_value):.2g} for this pair alone."
        )
    if smallest is not None:
        seeds = standings[0].score.seeds
        over = f"{first.examples:,} test rows" + (
            f" in {int(first.groups.max()) + 1:,} groups" if first.groups is not None else ""
        )
        of_seeds = (
            "these seeds" if single else f"{seeds} seeds" if seeds > 1 else "one seed, which is all there is to run"
        )
        low, high = first.bounds or (0.0, np.inf)
        # Of a few seeds the t factor is so large that nothing a score can differ by would pass it.
        warnings.append(
            f"The smallest difference that this design shows 80 times in 100: about {smallest:.3f} ({over}, {of_seeds})."
            if smallest < high - low
            else f"No difference, however large, is shown 80 times in 100 by this design ({over}, {of_seeds})."
        )
    seeded = [standing.method for standing in standings if standing.method not in seedless]
    if single and len(single) < len(seeded):
        warnings.append(f"{', '.join(single)} ran with one seed only: the score may change with another.")
    elif single:
        warnings.append("One seed per method: intervals ignore seed-to-seed variation.")
    return tuple(warnings)
