"""Intervals for a score and for the difference of two, over test examples and seeds.

Two things make a score uncertain: which examples are in the test set (hundreds of them) and which seeds were run
(three of them). Resampling three seeds covers far too little: where seeds matter most it holds the truth 70 % of the
time, not 95 %. So the two sources are treated each by what fits it, and added in quadrature:

    half-width^2 = (BCa half-width over examples)^2 + max(0, t(S-1)^2 * s^2 - z^2 * r/N) / S

    s^2   variance of the seeds' scores, S - 1 degrees of freedom; t(S-1) is Student's factor for it, z the normal's
    r/N   the part of s^2 that is noise of single answers (r: mean square of the seed x example interaction); it stands
          in the first term already and would count twice

Without the r/N that are two independent sources, whose squared half-widths may be added: the sum covers at least as
promised, whatever their sizes (Banerjee 1961). The price is width: up to a third more than needed, with three seeds
where seeds do not matter. `bench/stats_coverage.py` measures the coverage over a grid of seeds and examples.

Source: BCa: Efron, "Better bootstrap confidence intervals", 1987, with jackknife acceleration. Quadrature: Banerjee,
"On confidence interval for two-means problem based on separate estimates of variances", Sankhya A 23, 1961. For shares
of zeros and ones the side of the interval is never less than Wilson's (1927) with the effective number of examples, as
a bootstrap cannot see errors that did not happen. Measures of a table of labels get the same for each class whose rows are all
answered alike (`unseen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dollartune import format as numbers
from dollartune.errors import UserError
from dollartune.stats.outcomes import Floats, Indices, Outcomes, Sampled, resampled_together
from dollartune.stats.unseen import unseen_sides

# The ends of a 95 % interval are the 50th and the 1,951st of 2,000: their own noise is about 3 % of the half-width.
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the range that holds the truth with the stated confidence."""

    value: float
    low: float
    high: float
    level: float
    seeds: int
    examples: int
    standard_error: float
    """Root of the summed variances of examples and seeds."""
    sentence: str
    """What it means, for someone who has not met intervals before."""


@dataclass(frozen=True)
class Variance:
    """Variance of a mean over seeds, by source."""

    examples: float
    spread: float
    """Variance of the seeds' scores, s^2 (not of their mean)."""
    interaction: float
    """r/N: the part of `spread` that is noise of single answers and stands in `examples` too."""
    degrees: int
    """Degrees of freedom of `spread`, S - 1; 0 with one seed, where it cannot be known."""

    @property
    def seeds(self) -> float:
        """Variance of the mean over seeds beyond that in `examples`."""
        return max(0.0, self.spread - self.interaction) / (self.degrees + 1)


def variance_of(influence: Floats, points: Floats) -> Variance:
    """Splits the variance of the mean score.

    Args:
        influence: pseudo-values `(S, G)`.
        points: score of each seed, `(S,)`.
    """
    seeds, groups = influence.shape
    # One example, or one group of them, has no variance to be estimated; the sentence of the interval says so.
    if groups < 2:
        return Variance(0.0, 0.0, 0.0, 0)
    of_examples = influence.mean(axis=0)
    examples = float(of_examples.var(ddof=1)) / groups
    # With one seed the spread over seeds is unknown, not zero: the sentence says that the interval knows nothing of it.
    if seeds < 2:
        return Variance(examples, 0.0, 0.0, 0)
    rest = influence - of_examples - influence.mean(axis=1, keepdims=True) + influence.mean()
    # Two-way analysis of variance without replication: what neither the seed nor the example explains.
    interaction = float((rest**2).sum()) / ((seeds - 1) * (groups - 1)) / groups
    return Variance(examples, float(points.var(ddof=1)), interaction, seeds - 1)


def squared_by_seeds(chance: float, spread: float, interaction: float, degrees: float, seeds: int) -> float:
    """What seeds add to a squared half-width, `max(0, t^2 s^2 - z^2 r/N) / S`, with one-sided chance of error."""
    if degrees <= 0:
        return 0.0
    student, normal = float(special.stdtrit(degrees, 1 - chance)), float(special.ndtri(1 - chance))
    return max(0.0, student**2 * spread - normal**2 * interaction) / seeds


def draw_counts(examples: int, resamples: int, seed: int, groups: Indices | None = None) -> NDArray[np.float32]:
    """How often each example is drawn in each resample, `(B, N)`; shared by all methods, so that they stay paired.

    Args:
        groups: `(N,)`: which examples come together; whole groups are drawn, as many as there are.
    """
    if groups is not None:
        return draw_counts(int(groups.max()) + 1, resamples, seed)[:, groups]
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, examples, (resamples, examples), dtype=np.int32)
    drawn += np.arange(resamples, dtype=np.int32)[:, None] * np.int32(examples)
    # fp32 holds these small counts exactly and halves the memory of a (resamples, examples) matrix product.
    return np.bincount(drawn.ravel(), minlength=resamples * examples).reshape(resamples, examples).astype(np.float32)


def bca_sides(value: float, resampled: Floats, influence: Floats, level: float) -> tuple[float, float]:
    """How far the BCa interval reaches below and above the value (both at least 0).

    Args:
        resampled: `(B,)` scores of resamples.
        influence: `(G,)` pseudo-values of the score.
    """
    # All answers right, or all wrong: the bootstrap sees no spread. Wilson's side takes over in `score_interval`.
    if np.ptp(resampled) == 0:
        return 0.0, 0.0
    deviation = influence - influence.mean()
    # Of the jackknife: a sixth of the skewness of the influence values (Efron 1987, section 6).
    scale = float((deviation**2).sum()) ** 1.5
    acceleration = float((deviation**3).sum()) / (6 * scale) if scale > 0 else 0.0
    # Ties count half: shares of zeros and ones have many, and counting them on one side would bias the interval.
    below = (np.count_nonzero(resampled < value) + 0.5 * np.count_nonzero(resampled == value)) / resampled.size
    # Clipped by half a resample, or a value outside all resamples would give an infinite bias.
    bias = special.ndtri(np.clip(below, 0.5 / resampled.size, 1 - 0.5 / resampled.size))
    z = bias + special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    # With strong skew 1 - a z can pass zero, where BCa is not defined; 1e-3 keeps the end at the extreme resample.
    adjusted = special.ndtr(bias + z / np.maximum(1 - acceleration * z, 1e-3))
    low, high = np.quantile(resampled, adjusted)
    return max(0.0, value - float(low)), max(0.0, float(high) - value)


def wilson_sides(value: float, effective: float, level: float) -> tuple[float, float]:
    """How far Wilson's interval for a share reaches below and above it, with an effective number of examples."""
    z = float(special.ndtri((1 + level) / 2))
    center = (value + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * np.sqrt(value * (1 - value) / effective + z**2 / (4 * effective**2))
    return max(0.0, value - float(center - half)), max(0.0, float(center + half) - value)


def few_groups(outcomes: Sampled, level: float) -> float:
    """By how much Student's factor of G - 1 degrees exceeds the normal's: the variance over few groups is itself uncertain."""
    if outcomes.groups is None:
        return 1.0
    degrees = int(outcomes.groups.max())
    quantile = (1 + level) / 2
    return float(special.stdtrit(degrees, quantile) / special.ndtri(quantile)) if degrees else 1.0


def units_of(outcomes: Sampled) -> int:
    """What resamples draw: groups of test examples, or examples that are on their own."""
    return outcomes.examples if outcomes.groups is None else int(outcomes.groups.max()) + 1


def one_unit(outcomes: Sampled) -> str:
    """Test examples that are a single one to the statistics."""
    return "one test row" if outcomes.examples == 1 else f"{outcomes.examples:,} test rows, all of one group"


def _check_level(level: float) -> None:
    if not 0.5 <= level < 1:
        raise UserError(f"the level must be at least 0.5 and less than 1, got {level}.")


def score_interval(
    outcomes: Sampled,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    counts: NDArray[np.float32] | None = None,
) -> Interval:
    """The interval of the mean score over seeds: for other test examples of this kind, and other seeds.

    Args:
        counts: draws from `draw_counts`, to be shared between methods.
    """
    _check_level(level)
    drawn = draw_counts(outcomes.examples, resamples, seed, outcomes.groups) if counts is None else counts
    return _score_interval(outcomes, outcomes.resampled(drawn), level)


def score_intervals(results: Sequence[Sampled], level: float, counts: NDArray[np.float32]) -> list[Interval]:
    """Of many methods on the same examples: the same as `score_interval` of each, with one product of matrices.

    Args:
        counts: draws from `draw_counts`, `(B, N)`.
    """
    _check_level(level)
    intervals: list[Interval] = []
    # Fifty methods at once: the draws, 14 MB for 1,774 examples, pass through the cache fifty times less often, and what
    # is multiplied with them stays below 4 MB.
    for start in range(0, len(results), 50):
        some = results[start : start + 50]
        for one, resampled in zip(some, resampled_together(some, counts), strict=True):
            intervals.append(_score_interval(one, resampled, level))
    return intervals


def _score_interval(outcomes: Sampled, resampled: Floats, level: float) -> Interval:
    """From scores of resamples, `(B, S)`."""
    points, influence = outcomes.points(), outcomes.influence()
    value, variance = float(points.mean()), variance_of(influence, points)
    below, above = bca_sides(value, resampled.mean(axis=1), influence.mean(axis=0), level)
    wider = few_groups(outcomes, level)
    below, above = wider * below, wider * above
    if isinstance(outcomes, Outcomes) and outcomes.labels:
        # What resamples see of some classes, and what they cannot see of others: two sources, whose squares are added.
        unseen = unseen_sides(outcomes, level, wider)
        below, above = float(np.hypot(below, unseen[0])), float(np.hypot(above, unseen[1]))
    elif outcomes.binary or (outcomes.bounds is not None and value in outcomes.bounds):
        # A share, or a score that every row has at its end of the range (ROUGE 0): another row may have more.
        lowest, highest = outcomes.bounds or (0.0, 1.0)
        share = (value - lowest) / (highest - lowest)
        spread = share * (1 - share)
        # Answers of several seeds on the same examples, or of rows of one group, are not independent: as many examples as would
        # give this variance, and where nothing varies as many as there are groups.
        effective = influence.shape[1] if variance.examples <= 0 or spread <= 0 else spread / variance.examples
        sides = (highest - lowest) * np.array(wilson_sides(share, effective / wider**2, level))
        below, above = max(below, float(sides[0])), max(above, float(sides[1]))
    return _combine(value, below, above, variance, level, outcomes, outcomes.bounds, _score_sentence)


def difference_interval(
    first: Sampled, second: Sampled, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of `first - second`, paired: seed k with seed k, example i with example i.

    With different numbers of seeds the first ones are paired; a method with one seed (zero-shot prompting) is held
    against each seed of the other.

    Raises:
        UserError: the two were not measured on equally many examples.
    """
    _check_level(level)
    if first.examples != second.examples:
        raise UserError(
            f"a paired difference needs the same test examples, got {first.examples} and {second.examples}."
        )
    # Pseudo-values of a difference are differences of pseudo-values.
    points, influence = paired(first.points(), second.points()), paired(first.influence(), second.influence())
    drawn = draw_counts(first.examples, resamples, seed, first.groups)
    resampled = first.resampled(drawn).mean(axis=1) - second.resampled(drawn).mean(axis=1)
    # Of the paired seeds alone.
    value = float(points.mean())
    # Of all seeds, as the resamples are; how far the interval reaches does not depend on where it stands.
    center = float(first.points().mean() - second.points().mean())
    wider = few_groups(first, level)
    below, above = (wider * side for side in bca_sides(center, resampled, influence.mean(axis=0), level))
    return _combine(value, below, above, variance_of(influence, points), level, first, None, _difference_sentence)


def paired(first: Floats, second: Floats) -> Floats:
    """Differences seed by seed: `(S, ...)` each, one of them possibly with a single seed, or with more seeds."""
    if len(first) > 1 and len(second) > 1:
        common = min(len(first), len(second))
        first, second = first[:common], second[:common]
    return first - second


def _combine(
    value: float,
    below: float,
    above: float,
    variance: Variance,
    level: float,
    outcomes: Sampled,
    bounds: tuple[float, float] | None,
    sentence: Callable[[float, float, float, float, int, int, str], str],
) -> Interval:
    seeds = variance.degrees + 1
    by_seeds = squared_by_seeds((1 - level) / 2, variance.spread, variance.interaction, variance.degrees, seeds)
    low, high = value - float(np.sqrt(below**2 + by_seeds)), value + float(np.sqrt(above**2 + by_seeds))
    if bounds is not None:
        # A score cannot leave its range; cutting there loses no coverage.
        low, high = max(low, bounds[0]), min(high, bounds[1])
    text = sentence(value, low, high, level, seeds, outcomes.examples, outcomes.metric)
    if units_of(outcomes) == 1:
        # Nothing varies, and nothing is known of other rows: the interval is all that there is.
        lowest, highest = outcomes.bounds or (-np.inf, np.inf)
        low, high = (lowest, highest) if bounds is not None else (lowest - highest, highest - lowest)
        text = (
            f"The {outcomes.metric} {'differs by' if bounds is None else 'is'} {numbers.score(value)} on {one_unit(outcomes)}: "
            "how it would be on others cannot be told."
        )
    return Interval(
        value, low, high, level, seeds, outcomes.examples, float(np.sqrt(variance.examples + variance.seeds)), text
    )


def _seeds_clause(seeds: int) -> str:
    if seeds == 1:
        return "; with one seed it cannot say how much another seed would change the score"
    return f" and other seeds than these {seeds}"


def _score_sentence(value: float, low: float, high: float, level: float, seeds: int, examples: int, metric: str) -> str:
    return (
        f"The {metric} is {numbers.score(value)}, and {numbers.span(low, high)} holds its true value with "
        f"{numbers.percent(level)} confidence: "
        f"what one would get with other test examples than these {examples}{_seeds_clause(seeds)}."
    )


def _difference_sentence(
    value: float, low: float, high: float, level: float, seeds: int, examples: int, metric: str
) -> str:
    verdict = "so the first is better" if low > 0 else "so the second is better" if high < 0 else "so it may be chance"
    return (
        f"The first is {numbers.score(abs(value))} {'above' if value >= 0 else 'below'} the second in {metric}, and the true "
        f"difference lies between {numbers.change(low)} and {numbers.change(high)} with {numbers.percent(level)} confidence, "
        f"{verdict} ({examples} test examples{_seeds_clause(seeds)})."
    )
