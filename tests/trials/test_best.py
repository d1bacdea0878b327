"""Which setting is handed over."""

import pytest

from dollartune.trials.best import index_of_best


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([], None),
        ([None, None], None),
        ([0.5, 0.7, 0.7], 1),  # of equal ones the first
        ([-0.1, None, 0.0], 2),  # a correlation may be below 0, and 0 is a score
    ],
)
def test_the_best_of_what_was_judged(scores: list[float | None], best: int | None) -> None:
    assert index_of_best(scores) == best
