"""What training and evaluating a trial of a method costs, from a measurement of a few steps: seconds of any length of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

BETWEEN_SECONDS = 0.3
"""Per trial, for what is neither tuning nor evaluating: attaching, the record, adapters that are dropped. A little more than
`engines.base.EVALUATION_SECONDS`, so that a trial that was planned is not refused when it asks for its time limit."""
TRAINING_MARGIN = 1.15
"""Measured seconds of training times this: a few measured steps miss the longest rows, and a machine that others use too is
a tenth slower at times. Training can be ended early, so that more would only make plans timid."""
EVALUATING_MARGIN = 1.3
"""The same for evaluating, where nothing can be left out if it takes longer; above `engines.base.EVALUATION_MARGIN`, so that
a planned trial still passes that check when rows turn out a few hundredths slower than measured."""
LEAST_STEPS = 8
"""Fewer optimizer steps teach nothing (warm-up alone takes some); before that, seeds are left out."""
FRACTION_STEPS = 1000
"""Fractions of a training are found in thousandths: finer ones differ by less than a step of most trainings."""


@dataclass(frozen=True)
class TrialCost:
    """What one method costs on one backbone, task and scale."""

    steps: int
    """Optimizer steps of the study's whole training; 0 where nothing is trained."""
    seconds_per_step: float
    validations: float
    """Measurements of the validation loss in the whole training."""
    seconds_per_validation: float
    try_seconds: float
    """Evaluating a try, on the validation rows."""
    final_seconds: float
    """Evaluating a final trial, on the test and validation rows, and writing its adapter."""
    test_rows: int = 0
    """Test rows in it."""
    seconds_per_test_row: float = 0.0
    """Evaluating one of them."""
    validation_rows: int = 0
    """Of a try."""

    def training(self, fraction: float) -> float:
        """Seconds of a fraction of the training."""
        if not self.steps:
            return 0.0
        steps = max(1, round(fraction * self.steps))
        # One validation at least: the last step is always followed by one.
        return TRAINING_MARGIN * (
            steps * self.seconds_per_step + max(1.0, fraction * self.validations) * self.seconds_per_validation
        )

    def tried(self, fraction: float) -> float:
        """Seconds of a try."""
        return self.training(fraction) + EVALUATING_MARGIN * self.try_seconds + BETWEEN_SECONDS

    def final(self, fraction: float, reserve: float = 0.0) -> float:
        """Seconds of a final trial, of which at least `reserve` (0 to 1) is kept for what follows the training."""
        training = self.training(fraction)
        # The reserve is a share of the whole, of which the training is the rest.
        return max(training / (1 - reserve), training + EVALUATING_MARGIN * self.final_seconds + BETWEEN_SECONDS)

    def longest_final(self, seconds: float, reserve: float = 0.0) -> float:
        """The largest fraction whose final trial takes no longer than that; 0 if there is none."""
        return _largest(lambda fraction: self.final(fraction, reserve) <= seconds)

    def longest_try(self, seconds: float) -> float:
        """The largest fraction whose try takes no longer than that; 0 if there is none."""
        return _largest(lambda fraction: self.tried(fraction) <= seconds)

    @property
    def least(self) -> float:
        """The smallest fraction that is worth a run."""
        return min(1.0, LEAST_STEPS / self.steps) if self.steps else 1.0

    def corrected(self, training: float, evaluating: float) -> TrialCost:
        """The trial_cost by what trials really took: times the measured seconds, for training and for evaluating."""
        scale = dict.fromkeys(("seconds_per_step", "seconds_per_validation"), training)
        scale |= dict.fromkeys(("try_seconds", "final_seconds", "seconds_per_test_row"), evaluating)
        return replace(self, **{name: factor * getattr(self, name) for name, factor in scale.items()})

    def with_rows(self, test_rows: int, validation_share: float) -> TrialCost:
        """The same with another number of test rows, and a share (0 to 1) of the validation rows."""
        tried = validation_share * self.try_seconds
        # A final trial scores the validation rows as well, and is spared as many of them.
        seconds = self.final_seconds - (self.try_seconds - tried)
        seconds += (test_rows - self.test_rows) * self.seconds_per_test_row
        return replace(self, try_seconds=tried, final_seconds=max(0.0, seconds), test_rows=test_rows)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest fraction, in thousandths, that fits; fits must be true of all smaller ones too. By bisection."""
    if fits(1.0):
        return 1.0
    low, high = 0, FRACTION_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle / FRACTION_STEPS) else (low, middle)
    return low / FRACTION_STEPS
