"""What a study's design can show, said before it is paid for: rows of the test set, seeds, number of methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.planner.text_lengths import at_hand
from dollartune.stats.size import DISAGREEMENT, SEED_SPREAD, smallest_difference

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Task
    from dollartune.trials.trial import Trial


def design_notes(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """The smallest difference between two methods that each task's comparison shows 80 times in 100.

    Of tasks whose rows are not on this machine nothing is said. What two methods answer otherwise and how seeds spread is not
    known yet: it is supposed, and the sentence says how.
    """
    notes = []
    for index, task in enumerate(tasks):
        compared = [trial for trial in trials if trial.task_index == index and not trial.baseline]
        labels = {trial.label for trial in compared}
        if len(labels) < 2 or not at_hand(settings, task):
            continue
        test = task.splits(0, settings.data_seed, settings.evaluation.rows).test
        if len(test) < 2:
            continue
        # Groups and not rows: what rows of one group say is said once.
        groups = {task.group_of(row) or row.id for row in test}
        seeds = len(settings.seeds)
        paired = any(trial.draw is not None for trial in compared)
        smallest = smallest_difference(len(groups), seeds, len(labels), paired_seeds=paired)
        rows = f"{len(test):,} test rows" + (f" in {len(groups):,} groups" if len(groups) < len(test) else "")
        notes.append(
            f"{task.name}: {rows}, {len(labels)} methods and {seeds} seed{'' if seeds == 1 else 's'} show a difference of about "
            f"{numbers.score(smallest)} between two methods 80 times in 100; smaller ones mostly stay unseen (supposed: two "
            f"methods differ on {numbers.percent(DISAGREEMENT)} of the rows"
            + (
                f", by a standard deviation of {SEED_SPREAD:.2f} over seeds)."
                if seeds > 1
                else "; with one seed nothing is known of other seeds, and no method will be called the best)."
            )
        )
    return notes
