"""What the anytime scheduler says: why a run is begun, why none is begun any more, and what came of it. It decides nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dollartune import format as numbers

if TYPE_CHECKING:
    from dollartune.schedule.anytime_state import Run
    from dollartune.schedule.first_settings import Setting
    from dollartune.schedule.run_history import RunHistory


class AnytimeWords:
    """Sentences about the runs of one cell: log lines, and the reasons that its state and records keep.

    Args:
        history: how settings and runs are called, and what they scored.
    """

    def __init__(self, history: RunHistory) -> None:
        self.history = history

    # Why this runs

    def early(self, setting: Setting, steps: int) -> str:
        return f"{self.history.words(setting)} for {steps} steps, to have an adapter early."

    def main(self, setting: Setting, affordable: float, useful: float, seconds: float, timed: bool, alone: bool) -> str:
        """The first run of a method.

        Args:
            affordable: epochs that the seconds pay for.
            useful: epochs that the rows can use.
            timed: whether a step was: where every earlier run failed, none was.
            alone: whether nothing is left for others.
        """
        fit = (
            f"about {affordable:.1f} epochs fit in {numbers.seconds(seconds)}"
            if timed
            else "an epoch was not timed yet"
        )
        others = "One run uses the time." if alone else "Others come after it."
        return (
            f"{self.history.words(setting)}: {fit}; on {self.history.rows():,} rows {useful:.1f} are useful. {others}"
        )

    def longer(self, best: Run, steps: int) -> str:
        had = self.history.outcome(best).steps
        return f"{self.history.label(best)} was still getting better at its end: {steps} steps instead of {had}."

    def other_setting(self, setting: Setting, steps: int, best: Run, last: bool) -> str:
        """Another setting than that of the best run.

        Args:
            last: whether it has all that is left.
        """
        length = f"with all that is left, {steps} steps" if last else f"for {steps} steps"
        return f"{self.history.words(setting)} {length}, against {self.history.score_words(best)}."

    def rung(self, setting: Setting, seed: int, steps: int, fraction: float, best: Run | None) -> str:
        part = "" if fraction == 1 else f", {numbers.percent(fraction)} of a whole run"
        again = f" with seed {seed}" if seed != self.history.seeds(setting.method)[0] else ""
        against = "" if best is None else f", against {self.history.score_words(best)}"
        return f"{self.history.words(setting)}{again} for {steps} steps{part}{against}."

    def other_seed(self, best: Run, seed: int) -> str:
        return f"{self.history.label(best)} again with seed {seed}, with what no other setting needs."

    # Why nothing runs any more

    def too_few_epochs(self, setting: Setting, epochs: float, seconds: float, least: float) -> str:
        return (
            f"{self.history.words(setting)}: {epochs:.2g} epochs {_fit(seconds)}, and with less than {least:.2g} "
            "none was seen to beat a classifier on frozen features"
        )

    def too_few_steps(self, setting: Setting, steps: int, seconds: float, least: int) -> str:
        return f"{self.history.words(setting)}: {steps} steps {_fit(seconds)}, and a run has {least} at least"

    def too_little(self, method: str, steps: int, seconds: float, needed: int, known: bool, averaged: bool) -> str:
        """The seconds that are left pay for less than a run needs.

        Args:
            steps: that they pay for.
            known: whether a run has shown that so many are needed; else the rows can use them.
            averaged: whether money is kept for an average.
        """
        why = "were needed so far" if known else "are useful on these rows"
        if not steps:
            beside = " beside an average" if averaged else ""
            return f"what is left{beside} pays for no step of {method}, and {needed} {why}"
        many = f"{steps} step{'s' if steps > 1 else ''}"
        return f"the {numbers.seconds(seconds)} left pay for {many} of {method}, and {needed} {why}"

    def settled(self, further: int, seconds: float, probability: float, scores: int) -> str:
        """Further runs would not change what is handed over.

        Args:
            further: how many could follow.
            seconds: that are left.
            scores: of how many runs the probability was made.
        """
        runs = f"{further} more run{'s' if further > 1 else ''}"
        rest = "" if math.isinf(seconds) else f" that the {numbers.seconds(seconds)} left pay for"
        return (
            f"{runs}{rest} would not change this (probability {numbers.score(probability)}): none of them is expected to beat it "
            f"by more than its standard error, after the scores of {scores} runs"
        )

    # What came of it

    def ending(self, best: Run | None, reason: str) -> str:
        where, tried = self.history.cell.name(), len(self.history.state.runs)
        if best is None:
            return f"{where}: no adapter came about."
        of = f"is the highest of {tried} runs" if tried > 1 else "is the only run"
        return f"{where}: {self.history.score_words(best)} {of}. Ended: {reason}"


def unspent(seconds: float) -> str:
    """What is added to the reason of an ending."""
    return f"; {numbers.seconds(seconds)} are left unspent" if 0 < seconds < math.inf else ""


def _fit(seconds: float) -> str:
    return f"would fit in {numbers.seconds(max(0.0, seconds))}"
