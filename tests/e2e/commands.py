"""The command line in processes of its own, each forked from one that has imported the libraries: an import takes longer than
most of the commands that tests give. That a process begins with nothing is tested in tests/cli."""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "dollartune.cli.app", "dollartune.engines.cohort_worker", "dollartune.engines.local", "dollartune.report.write",
        "dollartune.study.api", "dollartune.tuning", "dollartune.export.opening", "dollartune.backbones.loading",
        # and what these import where they need it
        "dollartune.report.page", "dollartune.stats", "pandas", "scipy.stats.qmc", "optuna",
        "sklearn.feature_extraction.text", "sklearn.linear_model",
        "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    ]
)  # fmt: skip


class Command:
    """One `dollartune` command that runs, or another program.

    Args:
        words: what is typed behind `dollartune`.
        folder: where it runs.
        environment: variables beside those of this process.
        before: called in its process first; a function of a module that can be imported there.
        program: what is run in place of `dollartune`; the same holds for it.
    """

    def __init__(
        self,
        *words: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
        program: Callable[[], object] | None = None,
    ) -> None:
        self._files = tempfile.TemporaryDirectory()
        printed = Path(self._files.name)
        self._out, self._error = printed / "out", printed / "error"
        whole = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        arguments = (words, folder or Path.cwd(), whole, self._out, self._error, before, program or dollartune)
        self.process = PROCESSES.Process(target=_command, args=arguments)
        self.process.start()

    def running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ended(self, timeout: float) -> tuple[int, str, str]:
        """Its exit status, standard output and standard error."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"after {timeout:g} s it still runs\n{self._out.read_text()}{self._error.read_text()}")
        return self.process.exitcode, self._out.read_text(), self._error.read_text()


def _command(
    words: tuple[str, ...], folder: Path, environment: dict[str, str], out: Path, error: Path,
    before: Callable[[], object] | None, program: Callable[[], object],
) -> None:  # fmt: skip
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["dollartune", *words]
    for descriptor, path in ((1, out), (2, error)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(one, "w", closefd=False), write_through=True) for one in (1, 2)
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands it down as ignored
    if before is not None:
        before()
    program()


def dollartune() -> None:
    from dollartune.cli import main

    main()


def pytest() -> None:
    runpy.run_module("pytest", run_name="__main__")


def two_by_torchrun(program: Callable[..., object], *arguments: object) -> None:
    """What `torchrun --standalone --nproc-per-node 2` does, with forked processes, which import nothing again."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
    )
    elastic_launch(config, program)(*arguments)


def checkpoints_often() -> None:
    """A checkpoint every 0.2 s instead of every 10 s, so that a kill in a study of seconds meets some."""
    from dollartune.train.checkpoints import Checkpoints

    Checkpoints.__init__.__defaults__ = (0.2, *(Checkpoints.__init__.__defaults__ or ())[1:])


def interrupted_at_checkpoint() -> None:
    """Ctrl-C as soon as a checkpoint is there, which it is after the first step."""
    from dollartune.train.checkpoints import Checkpoints

    save = Checkpoints.save

    def then_interrupt(self: Checkpoints, trials: Any) -> None:
        save(self, trials)
        signal.raise_signal(signal.SIGINT)

    Checkpoints.__init__.__defaults__ = (0.0, *(Checkpoints.__init__.__defaults__ or ())[1:])
    Checkpoints.save = then_interrupt  # type: ignore[method-assign]
