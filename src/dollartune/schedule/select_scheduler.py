"""From a study's settings to its scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dollartune.schedule.cells import Cell, SequentialScheduler
from dollartune.schedule.fixed import FixedScheduler

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.config import StudySettings
    from dollartune.schedule.scheduler import CellScheduler, Scheduler
    from dollartune.schedule.search_space import SearchSpace
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial


def scheduler_for(
    settings: StudySettings,
    store: Store,
    ledger: Ledger,
    trials: Sequence[Trial],
    spaces: Sequence[SearchSpace],
    together: int,
) -> Scheduler:
    """Without `search:` all trials as they stand. With `strategy: anytime` a good adapter early, and better ones later, in each
    cell. Else, with one budget for the study: a race of all methods in each cell; with a budget each, every method searches
    for itself.

    Args:
        trials: all that the study lists.
        spaces: what a search may try of each method.
        together: most trials of a cohort.
    """
    search = settings.search
    if search is None:
        return FixedScheduler(settings, ledger, trials, together)
    cells = Cell.all(trials)
    schedulers: list[CellScheduler] = []
    if search.strategy == "anytime":
        from dollartune.schedule.anytime import AnytimeScheduler

        return SequentialScheduler([AnytimeScheduler(settings, store, ledger, cell, spaces, search) for cell in cells])
    # imported here, because Optuna and SciPy take a second that the first adapter of an anytime study does not need
    from dollartune.schedule.racing import RacingScheduler
    from dollartune.schedule.search import SearchScheduler

    if ledger.per == "study" and settings.budget is not None and settings.budget.limited:
        schedulers += [RacingScheduler(settings, store, ledger, cell, spaces, search, together) for cell in cells]
    else:
        schedulers += [
            SearchScheduler(settings, store, ledger, cell, space, search, together)
            for cell in cells
            for space in spaces
            if space.group in cell.seeds
        ]
    return SequentialScheduler(schedulers)
