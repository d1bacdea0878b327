"""From `engine:` in a study to an engine. The engine of this process needs nothing that is not installed anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dollartune.budget.study_budget import machine_price
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.local import LocalEngine
from dollartune.engines.trial_context import ContextCache

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.base import Driver, Engine
    from dollartune.engines.display import Display
    from dollartune.engines.ray_cluster import Cluster
    from dollartune.tasks.base import Task


def cluster_of(settings: StudySettings) -> Cluster | None:
    """The machines that a study is run on; None where that is this process.

    Raises:
        UserError: they cannot be reached, or have no room.
    """
    engine = settings.engine
    if engine.name == "local":
        return None
    from dollartune.engines.ray_cluster import Cluster

    return Cluster(engine, machine_price(settings))


def engine_for(
    driver: Driver,
    settings: StudySettings,
    tasks: Sequence[Task],
    places: int,
    display: Display,
    cluster: Cluster | None,
) -> Engine:
    """The engine of a study.

    Args:
        places: places in each input that stay free for virtual tokens.
        cluster: as `cluster_of` found it.
    """
    if cluster is None:
        contexts = ContextCache(settings, tasks, places)
        return LocalEngine(CohortWorker(settings, contexts, driver, display))
    from dollartune.engines.ray import RayEngine

    return RayEngine(driver, settings, tasks, places, cluster, display)
