"""Every pair of methods at once: the difference of their scores, its variance over rows and seeds, and how likely each is best.

    |a - b|^2 = |a|^2 + |b|^2 - 2 ab      of pseudo-values, so that M methods' M (M - 1) / 2 variances are products of matrices

Three seeds alone know little about their variance (df = 2). The pairs' variances are therefore shrunk towards their
common value as far as they agree with each other, by an inverse chi-square prior fitted to them. Where methods differ
in stability (prompt tuning may), the prior is weak and each pair stands on its own. Pairs share their methods, so that their
variances agree more than independent ones would: their agreement is judged as that of M variances, and with a margin of one
standard error. The prior's degrees of freedom are capped at (M - 1)(S - 1), what the seeds of all methods hold in total. Three
or four methods whose stability differs more than tenfold cannot be told from equally stable ones by three seeds; then 92 in
100 studies keep the best one, and not 95 (`bench/stats_coverage.py`). Pairs that stand on their own would keep the promise there
and find two thirds of the gaps of four points that are found now.

Seeds are paired where seed k of every method has the same training rows, whose luck then cancels in the difference. Where all
seeds train on the same rows, nothing is shared that pairing could cancel, and of two methods it would throw away half of what the
seeds tell of their spread. Their seeds then are two samples, and one is left out if

    d > t(a, df) sqrt( v + max(0, s_1^2 + s_2^2 - r/N) / S )

with the degrees of freedom of a sum of variances (Welch, Satterthwaite). With three seeds that finds a gap of four points half as
often again. It is not done for paired seeds: with the two degrees that these have, the approximation lets equal methods differ in
7 of 100 studies, and the quadrature above in 5 at most. Nor for more than two methods, where shrinking the pairs' variances is
worth as many degrees, and both at once would be too sure of methods that differ in stability (`bench/stats_coverage.py`).

Source: moderated variances: Smyth, "Linear models and empirical Bayes methods", 2004, equations 4 to 6. Degrees of freedom of
sums: Satterthwaite, "An approximate distribution of estimates of variance components", 1946, equation 17.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from dollartune.stats.intervals import few_groups

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Sampled

Indices = NDArray[np.intp]
# Drawn once per comparison. Their 2 % error in `a` moves a bound by less than 0.5 %.
_DRAWS = 20_000
"""Normal draws behind the max-t correction; its error in `a` is about 2 % of `a`."""
SAME_DIGITS = 9
"""Scores that agree to so many digits are equal: summed in another order, equal answers differ in the sixteenth."""


@dataclass(frozen=True)
class Pairs:
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


def prior_of_variances(
    variances: Floats, degrees: int, limit: float, independent: int | None = None
) -> tuple[float, float]:
    """The common value of sample variances and how many degrees of freedom their agreement is worth.

        log s^2 has mean log s0^2 + digamma(d/2) - digamma(d0/2) + log(d0/d) and variance trigamma(d/2) + trigamma(d0/2)

    The variance of the logarithms is taken one standard error larger than it was seen, so that a chance agreement is not taken
    for one: methods that differ in stability otherwise lend each other too many degrees.

    Args:
        independent: how many of the variances know something of their own; those of all pairs of M methods hold what M do.

    Returns:
        s0^2 and d0 (0: no agreement beyond chance to learn from; at most `limit`).
    """
    positive = variances[variances > 0]
    # Two variances always agree with some common value; agreement can be judged from three on.
    if positive.size < 3:
        return 0.0, 0.0
    logs = np.log(positive) - special.digamma(degrees / 2) + np.log(degrees / 2)
    seen = float(logs.var(ddof=1)) * (1 + (2 / ((independent or positive.size) - 1)) ** 0.5)
    excess = seen - float(special.polygamma(1, degrees / 2))
    # trigamma falls: spread below this value would mean more degrees of freedom than the seeds hold.
    floor = float(special.polygamma(1, limit / 2))
    if excess <= floor:
        prior = limit
    else:
        # trigamma goes from infinity at 0 to `floor` at the limit, so that the root lies between.
        prior = float(optimize.brentq(lambda d: float(special.polygamma(1, d / 2)) - excess, 1e-3, limit))
    center = float(logs.mean()) + float(special.digamma(prior / 2)) - np.log(prior / 2)
    return float(np.exp(center)), prior


def _pair_variances(methods: list[Sampled]) -> Pairs:
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
    difference = np.round(means[:, None] - means[None, :], SAME_DIGITS)
    return Pairs(difference, examples, spread, interaction, degrees, degrees + 1)


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


def pairs_of(methods: list[Sampled], paired_seeds: bool = True) -> Pairs:
    pairs = _pair_variances(methods)
    # Of three methods and more the pairs tell of each other's spread (below), and these are worth as many degrees.
    if not paired_seeds and len(methods) == 2:
        return _with_own_seeds(pairs, methods)
    upper = np.triu_indices(len(methods), 1)
    most = int(pairs.degrees[upper].max(initial=0.0))
    if not most:
        return pairs
    measured = pairs.spread[upper][pairs.degrees[upper] == most]
    center, prior = prior_of_variances(measured, most, (len(methods) - 1) * most, len(methods))
    moderated = (pairs.degrees == most) & ~np.eye(len(methods), dtype=bool)
    spread = np.where(
        moderated,
        (prior * center + pairs.degrees * pairs.spread) / (np.maximum(prior + pairs.degrees, 1)),
        pairs.spread,
    )
    return replace(pairs, spread=spread, degrees=pairs.degrees + np.where(moderated, prior, 0.0))


def _with_own_seeds(pairs: Pairs, methods: list[Sampled]) -> Pairs:
    """The variance over seeds of the difference of two methods as the sum of their own, which has Welch's degrees of freedom."""
    points = [method.points() for method in methods]
    own = np.array([float(point.var(ddof=1)) if len(point) > 1 else 0.0 for point in points])
    degrees = np.array([max(1, len(point) - 1) for point in points])
    # s^4 / df of a sum is the sum of its parts' s^4 / df; a method with one seed, whose spread is not known, adds nothing.
    uncertain = float((own**2 / degrees).sum())
    other = 1 - np.eye(2)
    summed = float(own.sum()) ** 2 / uncertain if uncertain > 0 else 0.0
    return replace(pairs, spread=float(own.sum()) * other, degrees=summed * other, paired_seeds=False)


def chances_per_look(pairs: Pairs, level: float, seed: int) -> Floats:
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


def drawn_scores(pairs: Pairs, draws: int, seed: int) -> Floats:
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


def probabilities_of_best(pairs: Pairs, seed: int) -> Floats:
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
