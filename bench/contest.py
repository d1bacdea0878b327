"""Contestants in processes of their own, in turns: one works while the others wait, so that all meet the same machine.

Processes of their own also make peak memory comparable, and let no side's settings (the allocator's) help another.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Contestant:
    """A worker process. `ask` sends one command and returns its answer.

    Args:
        root: the working tree whose worker and package take part.
    """

    def __init__(self, spec: Mapping[str, Any], log: Path, root: Path = HERE.parent) -> None:
        self.name = str(spec["side"])
        self.log = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(root / "bench" / "worker.py"), json.dumps(spec)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(root / "src")},
            )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """The next line that the worker says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-1500:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: str, value: Any = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, value]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def contestants(
    specs: Sequence[Mapping[str, Any]], folder: Path, roots: Sequence[Path] | None = None
) -> Iterator[list[Contestant]]:
    """Starts one worker per spec, one after the other, and ends them all.

    Args:
        roots: each one's working tree; this one where not given.
    """
    with ExitStack() as stack:
        found = []
        for number, spec in enumerate(specs):
            root = HERE.parent if roots is None else roots[number]
            contestant = Contestant(spec, folder / f"{number}-{spec['side']}.log", root)
            stack.callback(contestant.end)
            contestant.answer()
            found.append(contestant)
        yield found


def in_turns(workers: Sequence[Contestant], turns: int, command: str, value: Any) -> list[list[dict[str, Any]]]:
    """Answers of each worker to the same command, asked in turns; the order turns round each time."""
    found: list[list[dict[str, Any]]] = [[] for _ in workers]
    for turn in range(turns):
        order = range(len(workers)) if turn % 2 == 0 else reversed(range(len(workers)))
        for index in order:
            found[index].append(workers[index].ask(command, value))
    return found


def ratios(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of ours / peer, turn by turn."""
    pairs = [a / b for a, b in zip(ours, peer, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)
