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

How variances over seeds are estimated stands in `pairs`.

Source: subset of the best: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the
best", 1984. Quadrature: Banerjee 1961, as in `intervals`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dollartune import format as numbers
from dollartune.errors import UserError
from dollartune.format import listed
from dollartune.stats.exact import RowsThatDiffer, rows_that_differ
from dollartune.stats.intervals import (
    RESAMPLES,
    Interval,
    _check_level,
    difference_interval,
    draw_counts,
    one_unit,
    score_intervals,
    units_of,
)
from dollartune.stats.outcomes import Outcomes
from dollartune.stats.pairs import SAME_DIGITS, Pairs, chances_per_look, pairs_of, probabilities_of_best
from dollartune.stats.size import NeededSize, size_from_variance, smallest_shown

if TYPE_CHECKING:
    from dollartune.stats.outcomes import Floats, Sampled
    from dollartune.stats.pairs import Indices


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
    one_seed: str = ""
    """`With one seed each,`, or of which methods that another seed would change; empty where all of those ran with several."""
    smallest: float | None = None
    """The smallest true difference between two methods that this design shows 80 times in 100; None with one method."""
    rows_that_differ: RowsThatDiffer | None = None
    """Between the two highest scores, where these are so few that the exact test decides."""

    @property
    def best(self) -> str:
        """The method with the highest observed score."""
        return self.standings[0].method

    @property
    def conditional(self) -> bool:
        """Whether what is said holds for these seeds only."""
        return bool(self.one_seed)

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
    pairs = pairs_of(results, paired_seeds)
    chances = chances_per_look(pairs, level, seed)
    # Ties by name, so that the order does not depend on which trial finished first.
    order = sorted(range(len(names)), key=lambda index: (-round(scores[index].value, SAME_DIGITS), names[index]))
    # All methods against all rivals, not against the best observed alone, which may be the lucky one.
    worst, rivals = pairs.p_values()
    exact = _where_few_rows_differ(results, pairs, worst, rivals, chances)
    to_best = pairs.half_widths(chances, np.full(len(names), order[0]), np.arange(len(names)))
    probabilities = probabilities_of_best(pairs, seed)
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
    one_seed = _one_seed(single, set(names) - set(seedless))
    verdict = _verdict(tuple(standings), level, one_seed)
    sentence = f"{verdict} {explanation}" if len(standings) > 1 else verdict
    warnings = _warnings(tuple(standings), needed, single, set(seedless), differ, smallest, methods)
    against = _against_baselines(methods, beside, [one.method for one in standings], level, resamples, seed)
    beside_methods = _baseline_standings(beside, names[order[0]], against, level, counts)
    return Comparison(
        tuple(standings),
        level,
        sentence,
        explanation,
        warnings,
        needed,
        beside_methods,
        against,
        one_seed,
        smallest,
        differ,
    )


def _where_few_rows_differ(
    results: list[Sampled], pairs: Pairs, worst: Floats, rivals: Indices, chances: Floats
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
            chance = _of_few_rows(results[rival], results[index])
            if chance < smallest:
                smallest, by = chance, int(rival)
            if smallest < chances[index]:
                break
        if smallest > worst[index]:
            decided.add(int(index))
            worst[index], rivals[index] = min(smallest, 0.5), by
    return decided


def _of_few_rows(first: Sampled, second: Sampled) -> float:
    """Chance of so large a lead of the first by the exact test; 0 where so many rows differ that the normal one decides."""
    if not (isinstance(first, Outcomes) and isinstance(second, Outcomes)):
        return 0.0
    differ = rows_that_differ(first, second)
    return differ.p_value if differ is not None and differ.few else 0.0


def _first_two(results: list[Sampled], order: list[int]) -> RowsThatDiffer | None:
    if len(order) < 2:
        return None
    first, second = results[order[0]], results[order[1]]
    if not (isinstance(first, Outcomes) and isinstance(second, Outcomes)):
        return None
    differ = rows_that_differ(first, second)
    return differ if differ is not None and differ.few else None


def _smallest(pairs: Pairs, chances: Floats) -> float | None:
    """Of all pairs the median, as some pairs answer almost alike and others not."""
    rows, columns = np.triu_indices(len(pairs.difference), 1)
    if rows.size > 5_000:  # of a thousand methods some pairs are enough for a median
        rows, columns = rows[:: rows.size // 5_000], columns[:: columns.size // 5_000]
    widths = pairs.half_widths(np.minimum(chances[rows], chances[columns]), rows, columns)
    shown = smallest_shown(widths, np.sqrt(pairs.total[rows, columns]))
    shown = shown[shown > 0]
    return float(np.median(shown)) if shown.size else None


def _baseline_standings(
    baselines: Mapping[str, Sampled],
    best: str,
    against: tuple[AgainstBaseline, ...],
    level: float,
    counts: NDArray[np.float32],
) -> tuple[Standing, ...]:
    """Scores of baselines, each with its paired difference to the best method: the interval that says who is above."""
    gaps = {one.baseline: one for one in against if one.method == best}
    standings = []
    for name, score in zip(baselines, score_intervals(list(baselines.values()), level, counts), strict=True):
        gap = gaps[name]
        standings.append(Standing(name, score, -gap.difference, -gap.high, -gap.low, 1.0, False, None))
    return tuple(sorted(standings, key=lambda one: (-round(one.score.value, SAME_DIGITS), one.method)))


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
        bounds = outcomes.bounds
        # Of two seeds that disagree an interval may be wider than any two scores can differ.
        most = np.inf if bounds is None else bounds[1] - bounds[0]
        for name in order:
            gap = difference_interval(methods[name], outcomes, each, resamples, seed)
            low, high = max(gap.low, -most), min(gap.high, most)
            # As between methods: what the exact test of a few rows does not exclude, the interval does not either.
            if low > 0 and _of_few_rows(methods[name], outcomes) >= (1 - each) / 2:
                low = 0.0
            if high < 0 and _of_few_rows(outcomes, methods[name]) >= (1 - each) / 2:
                high = 0.0
            compared.append(AgainstBaseline(name, baseline, gap.value, low, high))
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
    order: list[int], standings: tuple[Standing, ...], pairs: Pairs, scores: list[Interval], level: float
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
        sentence=f"{standings[0].method} and {standings[1].method} differ by {numbers.score(needed.difference)} on "
        f"{scores[best].examples:,} test rows: a normal test of this pair alone would tell them apart; this one, which allows "
        f"for few seeds{among}, does not.",
    )


def _highest(standings: tuple[Standing, ...]) -> tuple[str, ...]:
    return tuple(one.method for one in standings if one.difference == 0)


def _one_seed(single: list[str], seeded: set[str]) -> str:
    """How a sentence begins where methods that another seed would change ran with one."""
    if not single:
        return ""
    # Of some methods only, whose names would else run into that of the best.
    return "With one seed each," if len(single) == len(seeded) else f"With one seed only for {listed(single)}:"


def _verdict(standings: tuple[Standing, ...], level: float, one_seed: str) -> str:
    kept = [standing.method for standing in standings if standing.may_be_best]
    if len(standings) == 1:
        return f"Only {kept[0]} has results: there is no other method to compare it with."
    alike = _highest(standings)
    highest, rest = listed(alike), listed(kept[len(alike) :])
    tied = len(alike) > 1
    scored, them = ("tie for the highest score", "them") if tied else ("scored highest", "it")
    if one_seed:
        if len(kept) > 1:
            more = f", and the test rows do not tell {them} from {rest}" if rest else ""
            return f"{one_seed} {highest} {scored}{more}; other seeds may rank all {len(standings)} otherwise."
        return (
            f"{one_seed} {highest} scored highest of {len(standings)} methods, by more than luck with the test rows explains; "
            "other seeds may rank them otherwise, so none is called the best."
        )
    if len(kept) == 1:
        return f"{highest} is the best of {len(standings)} methods with {numbers.percent(level)} confidence."
    more = f" cannot be told apart from {rest}" if rest else " cannot be told apart"
    return (
        f"{highest} {scored}{' and' if tied else ', but'}{more}: with {numbers.percent(level)} confidence the best "
        f"method is one of these {len(kept)} of {len(standings)}."
    )


def _explanation(methods: int, level: float) -> str:
    """What guards against a lucky winner, in one sentence."""
    if methods < 2:
        return ""
    if methods == 2:
        return f"The two were compared row by row on the same test rows ({numbers.percent(level)} interval)."
    return f"Intervals of differences are corrected for comparing {methods} methods ({numbers.percent(level)} family-wise)."


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
        # Recall of a class is moved by the class's rows alone.
        counted = "" if differ.weighed is None else " that move the score"
        warnings.append(
            f"{names} differ on {differ.won + differ.lost} {unit}{counted} ({differ.won} to {differ.lost}): exact test, "
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
            f"The smallest difference that this design shows 80 times in 100: about {numbers.score(smallest)} "
            f"({over}, {of_seeds})."
            if smallest < high - low
            else f"No difference, however large, is shown 80 times in 100 by this design ({over}, {of_seeds})."
        )
    seeded = [standing.method for standing in standings if standing.method not in seedless]
    if single and len(single) < len(seeded):
        warnings.append(f"{', '.join(single)} ran with one seed only: the score may change with another.")
    elif single:
        warnings.append("One seed per method: intervals ignore seed-to-seed variation.")
    return tuple(warnings)
