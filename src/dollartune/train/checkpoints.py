"""Checkpoints of a cohort: everything that decides how training goes on, as safetensors and JSON.

Random numbers need no state: batch orders and dropout masks are functions of (seed, step). So a cohort that is killed
and resumed ends with the same bits as one that ran through.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dollartune.train.optimizers import restore
from dollartune.train.progress import Progress

if TYPE_CHECKING:
    from dollartune.train.trial import TrialState

_SHARE_OF_TIME = 0.05
"""Most of a training's time that writing checkpoints may take. Full tuning of a large backbone writes for seconds; what a kill
then costs grows with the pause, and is still paid once, while every checkpoint is paid always."""
CHECKPOINT_ERRORS = (OSError, SafetensorError)
"""That reading and writing them may raise."""
_WORTH_KEEPING = 0.1
"""Share of the pause after which finished training is written down too: less is done again sooner than it is read."""


class Checkpoints:
    """Checkpoints of one cohort in one folder; the newest complete one counts.

    Args:
        folder: where they lie.
        every_seconds: least time between two; longer where writing would take more than a twentieth of the time.
        clock: seconds that only grow.
        saved: called after each; what it takes counts as writing.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.every_seconds, self._clock, self._saved = folder, every_seconds, clock, saved
        self._last = clock()

    def due(self) -> bool:
        """Whether the next one should be written now."""
        return self._clock() - self._last >= self.every_seconds

    def worth_keeping(self) -> bool:
        """Whether finished training is written down before it is evaluated: not when it is done again in a moment."""
        return self._clock() - self._last >= _WORTH_KEEPING * self.every_seconds

    def save(self, trials: Sequence[TrialState]) -> None:
        """Writes all trials to a temporary folder and renames it.

        Raises:
            CHECKPOINT_ERRORS: there is no room, or no permission; the one before stays.
        """
        started = self._clock()
        try:
            with self._replacing() as temporary:
                for trial in trials:
                    save_file(_tensors(trial), temporary / f"{trial.name}.safetensors")
                    state = {"progress": trial.progress.to_json(), "losses": trial.losses}
                    (temporary / f"{trial.name}.json").write_text(json.dumps(state))
            self._saved()
        finally:
            # from its end: writing that takes longer than the pause would else be due at once
            self._last = self._clock()
            self.every_seconds = max(self.every_seconds, (self._last - started) / _SHARE_OF_TIME)

    @contextmanager
    def _replacing(self) -> Iterator[Path]:
        """A temporary folder that takes the place of the checkpoint once it is complete."""
        temporary = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # a part of one takes the room that records need
            raise
        # renamed in two steps, as no system exchanges two folders: a kill between them leaves the older one, which still counts
        old = self.folder.with_name(f".{self.folder.name}.old")
        if self.folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)
        temporary.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _newest(self) -> Path:
        """The folder of the newest complete checkpoint, which a kill may have left under its older name."""
        return self.folder if self.folder.exists() else self.folder.with_name(f".{self.folder.name}.old")

    def holds(self, names: Iterable[str]) -> bool:
        """Whether there is one of all these trials, from which they go on."""
        folder = self._newest()
        # a checkpoint of fewer trials is no state of this cohort: its other trials would begin anew beside it
        return all((folder / f"{name}.json").is_file() for name in names)

    def load(self, trials: Sequence[TrialState]) -> bool:
        """Puts the newest checkpoint into freshly made trials; False if there is none that fits them and can be read."""
        if not self.holds(trial.name for trial in trials):
            return False
        folder = self._newest()
        try:
            stored = [
                (json.loads((folder / f"{t.name}.json").read_text()), load_file(folder / f"{t.name}.safetensors"))
                for t in trials
            ]
        except (*CHECKPOINT_ERRORS, ValueError):  # cut by a power failure: it costs the steps, and not the trial
            return False
        for trial, (state, tensors) in zip(trials, stored, strict=True):
            _restore(trial, tensors)
            planned, trial.progress = trial.progress.plan, Progress.from_json(state["progress"])
            trial.progress.plan = trial.progress.plan or planned  # 0.1 wrote none, and changed none
            trial.losses = state["losses"]
        return True

    def clear(self) -> None:
        """Removes them, when the cohort is done."""
        names = (self.folder.name, f".{self.folder.name}.old", f".{self.folder.name}.new")
        for folder in map(self.folder.with_name, names):
            shutil.rmtree(folder, ignore_errors=True)


def _named_parameters(trial: TrialState) -> dict[int, str]:
    return {id(p): name for name, p in trial.adapter.named_parameters()}


def _tensors(trial: TrialState) -> dict[str, Tensor]:
    """Adapter, best adapter, running average and optimizer state under one name each."""
    tensors = {f"adapter/{name}": t.clone() for name, t in trial.adapter.tensors().items()}
    # beside the current ones: what is best was measured some steps ago and cannot be computed again
    tensors |= {f"best/{name}": t for name, t in (trial.best or {}).items()}
    tensors |= {f"average/{name}": t for name, t in (trial.average or {}).items()}
    names = _named_parameters(trial)
    if trial.optimizer is not None:
        for parameter, values in trial.optimizer.state.items():
            for key, value in values.items():
                # as_tensor: paged AdamW counts its steps in a plain int
                tensors[f"optimizer/{names[id(parameter)]}/{key}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def _restore(trial: TrialState, tensors: dict[str, Tensor]) -> None:
    part: dict[str, dict[str, Tensor]] = {"adapter": {}, "best": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, rest = name.split("/", 1)
        part[kind][rest] = tensor
    trial.adapter.load(part["adapter"])
    trial.best, trial.average = part["best"] or None, part["average"] or None
    if trial.optimizer is None:
        return
    names = _named_parameters(trial)
    for number, group in enumerate(trial.optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            prefix = f"{names[id(parameter)]}/"
            state = {
                k.removeprefix(prefix): t
                for k, t in part["optimizer"].items()
                # names hold slashes themselves, so another one's may begin like this one
                if k.startswith(prefix) and "/" not in k.removeprefix(prefix)
            }
            if state:
                restore(trial.optimizer, number, index, state)
