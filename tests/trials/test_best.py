"""Which setting is handed over."""

import pytest

from dollartune.trials.best import Judged, index_of_best


@pytest.mark.parametrize(
    ("judged", "best"),
    [
        ([], None),
        ([Judged(None), Judged(None)], None),
        ([Judged(0.5), Judged(0.7), Judged(0.7)], 1),  # of equal ones the first
        ([Judged(-0.1), Judged(None), Judged(0.0)], 2),  # a correlation may be below 0, and 0 is a score
        ([Judged(0.80, 0.04, 0.40), Judged(0.791, 0.04, 0.35)], 1),  # within a quarter of an error the log-loss decides
        ([Judged(0.80, 0.04, 0.40), Judged(0.789, 0.04, 0.35)], 0),  # beyond it the score does
        ([Judged(0.80, 0.03, 0.40), Judged(0.795, 0.03, 0.40)], 0),
        ([Judged(0.80, 0.03, None), Judged(0.795, 0.03, 0.35)], 0),  # a log-loss of one alone is held against nothing
        ([Judged(0.80, 0.03, 0.40), Judged(0.798, 0.03, None), Judged(0.795, 0.03, 0.30)], 2),
    ],
)
def test_the_best_of_what_was_judged(judged: list[Judged], best: int | None) -> None:
    assert index_of_best(judged) == best
