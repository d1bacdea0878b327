"""A study under torchrun: all processes run the same study side by side, the first one keeps its records.

    torchrun --nproc-per-node 2 -m dollartune run study.yaml

Every decision must come out the same in each of them, and clocks do not: so there is no budget, and no measurement that
repeats requests for a second. The others begin with a copy of what the first one has, in a folder of their own that is
thrown away at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.config import StudySettings


def under_torchrun() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def side_by_side(settings: StudySettings, root: Path) -> Iterator[StudySettings]:
    """The study as this process runs it; plain where it is alone.

    Args:
        root: the study's folder.

    Raises:
        UserError: the study has a limit of time or money, or another engine.
    """
    if not under_torchrun():
        yield settings
        return
    budget = settings.budget
    if budget is not None and budget.limited:
        raise UserError(
            "a study under torchrun has no limit of time or money: its processes could not agree on when it is reached.",
            hint="Set training: {epochs: ...} instead of the budget's dollars or seconds; a price may stay.",
        )
    if settings.engine.name != "local":
        raise UserError("torchrun is for the engine in this process; a Ray cluster has engines of its own.")
    from dollartune.train.distributed import joined

    settings = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"inference_cost": False})}
    )
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        if not group.first:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if root.is_dir():
                shutil.copytree(root, copy / root.name)
            # Trackers off: one run must not be reported once per process.
            settings = settings.model_copy(update={"output": str(copy), "trackers": []})
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf8"))))
        # A sum over all processes is a barrier: it returns only when each of them has called it.
        group.add([0.0])  # nobody begins before everyone has copied
        yield settings
