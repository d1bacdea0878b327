"""How sure one may be: intervals, differences, the best methods, and how large a test set must be.

    from dollartune.stats import Outcomes, compare
    result = compare({"lora": Outcomes.from_values(correct), "full": Outcomes.from_values(other)})
    print(result.sentence)

Names load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollartune.stats.comparison import Comparison, Standing, compare
    from dollartune.stats.intervals import Interval, difference_interval, score_interval
    from dollartune.stats.outcomes import CallableOutcomes, Outcomes, Sampled
    from dollartune.stats.size import NeededSize, examples_for, needed_test_size, smallest_difference
    from dollartune.stats.summary import Summary, TaskScores, summarize

_HOME = {
    "Outcomes": "outcomes",
    "CallableOutcomes": "outcomes",
    "Sampled": "outcomes",
    "Interval": "intervals",
    "score_interval": "intervals",
    "difference_interval": "intervals",
    "Comparison": "comparison",
    "Standing": "comparison",
    "compare": "comparison",
    "NeededSize": "size",
    "needed_test_size": "size",
    "examples_for": "size",
    "smallest_difference": "size",
    "Summary": "summary",
    "TaskScores": "summary",
    "summarize": "summary",
}
__all__ = [
    "CallableOutcomes",
    "Comparison",
    "Interval",
    "NeededSize",
    "Outcomes",
    "Sampled",
    "Standing",
    "Summary",
    "TaskScores",
    "compare",
    "difference_interval",
    "examples_for",
    "needed_test_size",
    "score_interval",
    "smallest_difference",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
