"""How many test examples it takes to tell two methods apart.

    n = (z(level) + z(power))^2 * c / (d^2 - (z(level) + z(power))^2 * e)

    d   the difference to be seen        c   variance of the per-example difference
    e   variance of the difference over seeds, which no test set makes smaller

When the bracket is not positive, more seeds are needed first.

And the other way round, the smallest difference that a design of n examples and S seeds shows with that power:

    d = half-width of the interval + z(power) * standard deviation of the difference
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Sampled

POWER = 0.8
"""How often one wants to see a difference that is there: the usual compromise (Cohen 1988)."""
DISAGREEMENT = 0.15
"""Share of test rows that one of two methods gets right and the other wrong, before it is measured: tuned methods of one
backbone on AG News, SST-2 and RTE differ on 8 to 20 of 100 rows."""
SEED_SPREAD = 0.02
"""Standard deviation over seeds, each with training rows of its own, of the difference of two methods, before it is measured:
on 100 rows of AG News a method's own score has 0.036 (five draws), of which two methods on the same draw share most."""


@dataclass(frozen=True)
class NeededSize:
    """What it would take, with what there was."""

    examples: int | None
    """Test examples with as many seeds as now; None when no number of examples is enough."""
    seeds: int | None
    """Seeds with endlessly many examples, when `examples` is None; None too when the two scores are equal."""
    difference: float
    sentence: str


def _factor(level: float, power: float) -> float:
    from scipy import special

    # Two-sided for the level, one-sided for the power: 1.96 + 0.84 by default.
    return float(special.ndtri((1 + level) / 2) + special.ndtri(power))


def _rounded_up(count: int) -> int:
    """Two digits that count, upwards: 1,234 -> 1,300."""
    # Two digits: more would suggest a precision that a planned size does not have. Rounded up, to err on the safe side.
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def size_from_variance(
    *,
    difference: float,
    examples_variance: float,
    seeds_variance: float,
    examples: int,
    seeds: int,
    level: float = 0.95,
    power: float = POWER,
    names: tuple[str, str] = ("the first", "the second"),
) -> NeededSize:
    """From the variances of the difference as measured with `examples` test examples and `seeds` seeds."""
    first, second = names
    told = f"{first} and {second} differ by {numbers.score(difference)} on {examples:,} test rows"
    if difference <= 0:
        return NeededSize(
            None, None, difference, f"{first} and {second} scored the same on these {examples:,} test rows."
        )
    factor = _factor(level, power) ** 2
    # What seeds alone blur is there however many rows are tested; only the rest can be bought with rows.
    room = difference**2 - factor * seeds_variance
    if room > 0:
        # Two examples are the fewest with a variance.
        needed = max(2, math.ceil(factor * examples_variance * examples / room))
        if needed <= examples:
            return NeededSize(needed, seeds, difference, f"{told}, which is enough to tell a gap of that size.")
        return NeededSize(
            needed, seeds, difference,
            f"The test set is too small to tell {first} and {second} apart: they differ by {numbers.score(difference)} on "
            f"{examples:,} test rows. If that gap is real, about {_rounded_up(needed):,} rows would show it "
            f"({power * 100:.0f} times in 100).",
        )  # fmt: skip
    # One more than would do with infinitely many rows, hence `at least`.
    runs = math.ceil(factor * seeds_variance * seeds / difference**2) + 1
    return NeededSize(
        None, runs, difference,
        f"More test rows would not tell {first} and {second} apart: they differ by {numbers.score(difference)}, less than scores "
        f"change from seed to seed. At least {runs} seeds each would be needed, not {seeds}.",
    )  # fmt: skip


def smallest_shown(half_widths: Floats, deviations: Floats, power: float = POWER) -> Floats:
    """True differences that pass these half-widths with that power, `(pairs,)` each."""
    from scipy import special

    shown: Floats = half_widths + float(special.ndtri(power)) * deviations
    return shown


def smallest_difference(
    examples: int,
    seeds: int,
    methods: int,
    *,
    level: float = 0.95,
    power: float = POWER,
    disagreement: float = DISAGREEMENT,
    seed_spread: float = SEED_SPREAD,
    paired_seeds: bool = True,
) -> float:
    """Before anything is run: the smallest true difference of two methods that the study will show.

        h + z(power) sqrt(v),   v = D/n + s^2/S,   a = (1 - level) / max(2, M - 1)
        h^2 = z(a)^2 D/n + t(a, df)^2 s^2/S,   df = (S - 1)(M - 1)
        h^2 = t(a, df)^2 v,   df = 2 (S - 1) v^2 / (s^2/S)^2    of two methods, where all seeds have the same training rows

    Args:
        examples: test rows, n (groups, where rows come in groups).
        seeds: per method, S; with one, what holds for that seed alone.
        methods: compared with each other, M; each method's seeds also tell of the others' spread, df = (S - 1)(M - 1).
        disagreement: share of rows that one of the two gets right and the other wrong, D.
        seed_spread: of the difference over seeds, s.
        paired_seeds: whether each seed draws training rows of its own, which the methods share.
    """
    from scipy import special

    rivals = max(1, methods - 1)
    chance = (1 - level) / max(2, rivals)  # as `comparison`: two-sided for two methods, Bonferroni's bound for more
    by_rows, by_seeds = disagreement / max(1, examples), seed_spread**2 / seeds if seeds > 1 else 0.0
    normal = float(special.ndtri(1 - chance))
    variance = by_rows + by_seeds
    if seeds < 2:
        half = normal * math.sqrt(variance)
    elif paired_seeds or methods > 2:
        student = float(special.stdtrit((seeds - 1) * rivals, 1 - chance))
        half = math.sqrt(normal**2 * by_rows + student**2 * by_seeds)
    else:
        degrees = 2 * (seeds - 1) * (variance / by_seeds) ** 2
        half = float(special.stdtrit(degrees, 1 - chance)) * math.sqrt(variance)
    return half + float(special.ndtri(power)) * math.sqrt(variance)


def needed_test_size(first: Sampled, second: Sampled, level: float = 0.95, power: float = POWER) -> NeededSize:
    """How many test examples would show the difference between two methods, were it as large as observed.

    Args:
        power: how often one wants to see it.

    Raises:
        UserError: the two were not measured on equally many examples.
    """
    from dollartune.stats.intervals import paired, variance_of

    if first.examples != second.examples:
        raise UserError(f"the same test examples are needed, got {first.examples} and {second.examples}.")
    points = paired(first.points(), second.points())
    variance = variance_of(paired(first.influence(), second.influence()), points)
    return size_from_variance(
        difference=abs(float(points.mean())),
        examples_variance=variance.examples,
        seeds_variance=variance.seeds,
        examples=first.examples,
        seeds=len(points),
        level=level,
        power=power,
    )


def examples_for(difference: float, disagreement: float, level: float = 0.95, power: float = POWER) -> int:
    """Before anything is run: test examples to see a difference in accuracy.

    Args:
        difference: the gap that matters, 0.01 for one point.
        disagreement: share of examples that one of the two gets right and the other wrong; at least the difference.

    Raises:
        UserError: impossible amounts.
    """
    if not 0 < difference <= disagreement <= 1:
        raise UserError(
            f"0 < difference <= disagreement <= 1 is needed, got difference {difference}, disagreement {disagreement}."
        )
    # The variance of one example's difference, which is -1, 0 or 1: its mean square less its squared mean.
    return math.ceil(_factor(level, power) ** 2 * (disagreement - difference**2) / difference**2)
