"""Experiment trackers, opt-in: TensorBoard, Weights & Biases and MLflow are told of each validation and each result.

A tracker is a small adapter around the library's own client; none is imported unless the study names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dollartune.engines.display import Display, TrialInTraining
from dollartune.errors import UserError, unknown_name

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.train.progress import Validation
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


class Tracker(Protocol):
    """What a tracker must be able to do, per trial."""

    def measure(self, trial: Trial, step: int, values: Mapping[str, float]) -> None:
        """Losses at an optimizer step."""

    def finish(self, trial: Trial, facts: Mapping[str, object], scores: Mapping[str, float]) -> None:
        """The trial's settings and scores."""

    def close(self) -> None:
        """The study is over."""


class TensorBoard:
    """One run per trial under `<study>/tensorboard/`."""

    def __init__(self, root: Path, name: str) -> None:
        self.writer_class = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.root = root / "tensorboard"
        self.writers: dict[str, Any] = {}

    def _writer(self, trial: Trial) -> Any:
        if trial.identifier not in self.writers:
            self.writers[trial.identifier] = self.writer_class(str(self.root / trial.identifier))
        return self.writers[trial.identifier]

    def measure(self, trial: Trial, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer(trial).add_scalar(name, value, step)

    def finish(self, trial: Trial, facts: Mapping[str, object], scores: Mapping[str, float]) -> None:
        named = {f"test/{name}": value for name, value in scores.items()}
        # In the trial's own folder: by default TensorBoard makes another run, named by the time.
        self._writer(trial).add_hparams({k: str(v) for k, v in facts.items()}, named, run_name=".")

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class WeightsAndBiases:
    """One run per trial, grouped by study."""

    def __init__(self, root: Path, name: str) -> None:
        self.wandb = _require("wandb", "wandb")
        self.root, self.name, self.run = root, name, None
        self.current = ""

    def _start(self, trial: Trial) -> Any:
        if self.current != trial.identifier:
            self.close()
            self.run = self.wandb.init(
                # By the trial's identifier: a resumed study goes on in the same run.
                project="dollartune", group=self.name, name=trial.label, id=trial.identifier, resume="allow",
                dir=str(self.root), config=trial.to_json(), reinit=True,
            )  # fmt: skip
            self.current = trial.identifier
        return self.run

    def measure(self, trial: Trial, step: int, values: Mapping[str, float]) -> None:
        self._start(trial).log(dict(values), step=step)

    def finish(self, trial: Trial, facts: Mapping[str, object], scores: Mapping[str, float]) -> None:
        self._start(trial).summary.update({**facts, **{f"test/{name}": value for name, value in scores.items()}})

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
        self.run, self.current = None, ""


class MLflow:
    """One run per trial in the study's experiment."""

    def __init__(self, root: Path, name: str) -> None:
        self.client = _require("mlflow", "mlflow").MlflowClient()
        # A study that goes on has its experiment already, and MLflow refuses a second one of the name.
        experiment = self.client.get_experiment_by_name(name)
        self.experiment = experiment.experiment_id if experiment is not None else self.client.create_experiment(name)
        self.runs: dict[str, str] = {}

    def _run(self, trial: Trial) -> str:
        if trial.identifier not in self.runs:
            run = self.client.create_run(self.experiment, run_name=trial.label)
            self.runs[trial.identifier] = run.info.run_id
        return self.runs[trial.identifier]

    def measure(self, trial: Trial, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            # A slash in MLflow makes a folder of metrics.
            self.client.log_metric(self._run(trial), name.replace("/", "."), value, step=step)

    def finish(self, trial: Trial, facts: Mapping[str, object], scores: Mapping[str, float]) -> None:
        run = self._run(trial)
        for name, value in facts.items():
            # MLflow refuses parameters above 500 characters (6,000 in newer servers); the record has the whole value.
            self.client.log_param(run, name, str(value)[:500])
        for name, value in scores.items():
            self.client.log_metric(run, f"test.{name.replace('/', '.')}", value)
        self.client.set_terminated(run)

    def close(self) -> None:
        return None


TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class TrackedDisplay(Display):
    """Passes everything on to another display, and validations and results to trackers."""

    def __init__(self, inner: Display, trackers: Sequence[Tracker]) -> None:
        self.inner, self.trackers = inner, trackers

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.close)
            with self.inner.study(trials, todo, ledger):
                yield

    def note(self, text: str) -> None:
        self.inner.note(text)

    def expect(self, total: int) -> None:
        self.inner.expect(total)

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        self.inner.training(trials, states)

    def validated(self, trial: Trial, validation: Validation) -> None:
        self.inner.validated(trial, validation)
        values = {"loss/train": validation.train_loss, "loss/validation": validation.validation_loss}
        for tracker in self.trackers:
            tracker.measure(trial, validation.step, values)

    def evaluating(self, trial: Trial) -> None:
        self.inner.evaluating(trial)

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        self.inner.recorded(trial, record)
        facts = {
            "status": record.status,
            "label": trial.label,
            "task": trial.task,
            "seed": trial.seed,
            **record.cost.model_dump(),
        }
        scores = record.test.scores if record.test is not None else {}
        for tracker in self.trackers:
            tracker.finish(trial, facts, {name: value for name, value in scores.items() if value is not None})


def tracked(display: Display, names: Sequence[str], root: Path) -> Display:
    """The display, with the named trackers told as well.

    Raises:
        UserError: an unknown tracker, or one whose library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
    return TrackedDisplay(display, [TRACKERS[name](root, root.name) for name in names]) if names else display


def _require(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"the tracker {package!r} is not installed.", hint=f"pip install {package}  (or 'dollartune[trackers]')"
        ) from None
