"""A finished trial that the page trains further, in a process of its own: a page that is closed ends no training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TypedDict


class Extending(TypedDict):
    """What the page shows of it."""

    trial: str
    running: bool
    words: str


class ExtendProcess:
    """`dollartune trials extend`, as typed in a terminal.

    Args:
        root: the study's folder.
        trial: its identifier.
        steps: optimizer steps on top.
    """

    def __init__(self, root: Path, trial: str, steps: int) -> None:
        self.trial = trial
        self._said = root / "requests" / "extend.log"
        self._said.parent.mkdir(exist_ok=True)
        words = ["trials", "extend", str(root), trial, "--steps", str(steps), "-q"]
        # Into a file: nobody reads a pipe while the page is closed, and a full one would stop the training.
        with self._said.open("w", encoding="utf8") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dollartune", *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                start_new_session=True,  # Ctrl-C in the terminal of the page is not meant for it
            )  # fmt: skip

    @property
    def runs(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def state(self) -> Extending:
        """For the page: the trial, whether it runs, and a sentence."""
        runs = self.runs
        if runs:
            said = "It is being trained further; reading backbone and data takes a moment."
        elif self._process.returncode == 0:
            said = "It has been trained further; the new trial stands beside it."
        else:
            said = f"It could not be trained further: {_reason(self._said.read_text(encoding='utf8'))}"
        return {"trial": self.trial, "running": runs, "words": said}


def _reason(errors: str) -> str:
    """Of a refusal its sentence, without the hint; of a traceback the last line, which tells most."""
    lines = errors.strip().splitlines() or ["it ended without a word."]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
