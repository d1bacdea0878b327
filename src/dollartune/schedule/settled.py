"""Would more money change the answer? The probability that further runs bring nothing better, from the runs that were seen.

scores of runs    x x  x x |best              the next run's score: Student's t around their mean
                           |--- se ---|####   what of it lies beyond the best by more than its standard error, would
                                              change the answer
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SETTLED = 0.95
"""Probability from which the rest of the money is given back, the level of all claims of a study."""
LEAST_RUNS = 3
"""Scores from which their spread says something. Of two runs it is known to a factor of three at best."""
LEAST_SPREAD = 0.4
"""Standard errors: scores of a few runs may be equal by chance, since all of them are taken on the same rows."""


def stays_best(scores: Sequence[float], best: float, standard_error: float, further: int) -> float:
    """The probability that none of so many further runs beats the best score by more than its standard error.

    The next score is predicted from those seen as one more draw of a normal distribution of unknown mean and variance:
    Student's t with n - 1 degrees of freedom, scaled by s · sqrt(1 + 1/n). Settings come in the order of what is known of them,
    so that later ones are, if anything, worse than this says.

    Args:
        scores: of runs that had the time to learn, one number each.
        further: runs that the rest of the money pays for.

    Returns:
        0 where too few runs were seen to tell.
    """
    if further <= 0:
        return 1.0
    if len(scores) < LEAST_RUNS:
        return 0.0
    from scipy.stats import t  # a second to import, and most schedules never ask

    n = len(scores)
    spread = max(float(np.std(scores, ddof=1)), LEAST_SPREAD * standard_error)
    if spread == 0:
        return 1.0
    distance = (best + standard_error - float(np.mean(scores))) / (spread * math.sqrt(1 + 1 / n))
    return float(t.cdf(distance, n - 1)) ** further
