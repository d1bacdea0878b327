"""Measures a few real steps on this machine and fits its speed to them; what was found is kept, so it costs seconds once.

shapes: few and many rows, short and long     methods: a light one, and full tuning where memory allows
measured seconds + traced work of the same steps  ->  `speed.fitted`
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast.processor import cpu_has_bf16
from dollartune.cache import cache_directory, keep
from dollartune.errors import UserError
from dollartune.methods.registry import build_method, with_head
from dollartune.planner.dry_run import Bare, BatchShape, dry_run_of, rows_of_shape
from dollartune.planner.roofline import GPU_LAUNCH_SECONDS, Speed, core_speed, fitted
from dollartune.train.cuda_graphs import CudaGraphs
from dollartune.train.loop import CohortTrainer
from dollartune.train.trial import TrialState

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method
    from dollartune.planner.op_trace import Work
    from dollartune.train.settings import TrainingSettings

MOST_TOKENS = 1024
"""Per step of the calibration, so that seven cases fit half a minute on two cores; above it kernels only grow in proportion,
which the fit carries on."""
LEAST_TOKENS = 4
"""A row: with fewer there is no padding and hardly an attention to time."""
FULL_UP_TO = 400_000_000
"""Parameters up to which full tuning is measured too. It keeps copies, gradients and two moments in fp32, 16 bytes for each:
6.4 GB, which a machine of 8 GB still has."""
REPEATS = 3
"""Steps of which the median is taken: one that was interrupted does not count."""
LONGEST = 256
"""Tokens of the longest input where nobody said otherwise: sentences and reviews are shorter."""
LIMIT_SECONDS = 30.0
"""No further case begins after this: a plan is waited for. The most telling cases come first."""
PRESENT_GPU = Speed(
    2e14, 2e13, 0.6, 1e12, 1e11, GPU_LAUNCH_SECONDS, overlapping=True,
    source="supposed: a present data-center GPU, not measured",
)  # fmt: skip
"""Where the fit of an unknown GPU begins: between half of what an A100 and of what an H100 can do by their data sheets."""


def cases() -> list[tuple[str, int, float]]:
    """(method, rows, share of the longest input) to time, the most telling first: `calibration.yaml`."""
    text = (Path(__file__).parent / "calibration.yaml").read_text(encoding="utf8")
    return [(str(method), int(rows), float(share)) for method, rows, share in yaml.safe_load(text)]


def timed_steps(
    backbone: Backbone,
    methods: Sequence[Method[Any]],
    settings: TrainingSettings,
    shape: BatchShape,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of a real optimizer step, after one that warms up. The backbone is left as it was."""
    attached = Attached(backbone.model, backbone.anatomy, backbone.processor)
    try:
        adapter = attached.add("calibration", methods)
        rows = rows_of_shape(backbone, shape)
        # The study's own settings else: what its steps cost is to be known.
        settings = settings.model_copy(update={"epochs": 1, "batch_size": shape.rows})
        # One epoch of more batches than are timed: the trial must not end, nor its rows come a second time (the second epoch
        # would be computed from cached outputs of frozen layers, which is faster than what is to be timed).
        state = TrialState("calibration", adapter, rows * (repeats + 2), settings, 0)
        trainer = CohortTrainer(backbone, attached, [state], rows[:1])
        # Plain passes: recording one falls into these few steps, and into none of a hundred later ones.
        trainer.forward_backward.cuda_graphs = CudaGraphs(backbone.device, None, 0)
        seconds = []
        with trainer.ready():
            for _ in range(repeats + 1):
                _wait(backbone.device)  # kernels run behind the host: neither may those of the step before count
                started = clock()
                trainer.train_step([state])
                _wait(backbone.device)  # nor may those of this step be left out
                seconds.append(clock() - started)
        return statistics.median(
            seconds[1:]
        )  # the first fills caches of the allocator and of oneDNN's compiled kernels
    finally:
        attached.detach()
        gc.collect()  # hooks and closures of the trainer form cycles; the next case needs their memory


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class MeasuredStep:
    """One measured step."""

    method: str
    shape: BatchShape
    seconds: float
    work: Work


def calibrate(
    backbone: Backbone,
    bare: Bare,
    settings: TrainingSettings,
    longest: int = LONGEST,
    answer: int = 1,
    limit_seconds: float = LIMIT_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Speed, list[MeasuredStep]]:
    """Fits the speed of this machine on this backbone.

    Args:
        bare: the same backbone without weights, to trace what is measured.
        longest: tokens of the longest input that is worth measuring.
        limit_seconds: no further case begins after this.
    """
    # What is there already is no garbage of a case: without two million objects of libraries a collection after each case takes
    # a moment, with them a fifth of a second.
    gc.freeze()
    try:
        measured = _measured_steps(backbone, bare, settings, longest, answer, limit_seconds, clock)
    finally:
        gc.unfreeze()
    if not measured:
        raise UserError(f"nothing can be measured on {backbone.name!r}: no method of the calibration can be put on it.")
    speed = fitted(prior_speed(), [m.work for m in measured], [m.seconds for m in measured], source="measured here")
    return speed, measured


def _measured_steps(
    backbone: Backbone,
    bare: Bare,
    settings: TrainingSettings,
    longest: int,
    answer: int,
    limit_seconds: float,
    clock: Callable[[], float],
) -> list[MeasuredStep]:
    started = clock()
    measured: list[MeasuredStep] = []
    for name, rows, share in cases():
        if (
            measured and clock() - started > limit_seconds
        ):  # one case at least, however slow: without it there is no fit
            break
        tokens = max(LEAST_TOKENS, min(int(longest * share), MOST_TOKENS // rows))
        shape = BatchShape(rows, tokens, 0 if backbone.objective == "classification" else answer)
        methods = _methods(name, backbone)
        if methods is None:
            continue
        seconds = timed_steps(backbone, methods, settings, shape, clock=clock)
        with dry_run_of(bare, methods, settings, device=backbone.device.type) as dry:
            work = dry.training_work(shape)
        measured.append(MeasuredStep(name, shape, seconds, work))
    return measured


def prior_speed() -> Speed:
    """Where the fit begins on this machine."""
    if torch.cuda.is_available():
        return PRESENT_GPU
    return core_speed(torch.get_num_threads(), cpu_has_bf16())


def _methods(name: str, backbone: Backbone) -> list[Method[Any]] | None:
    """The method as a trial would attach it; None where it has no sites or too little memory."""
    method = build_method(name)
    total = backbone.anatomy.at("model")[0].parameters
    # Weights in 4 bits have no gradient, so full tuning of them is no trial.
    packed = any(not p.is_floating_point() for p in backbone.model.parameters())
    if "model" in method.kinds and (packed or total > FULL_UP_TO):
        return None
    try:
        method.check(backbone.anatomy)
        method.sites(backbone.anatomy)
    except UserError:
        return None
    return with_head([method], backbone.objective)


# What is kept


def calibration_folder() -> Path:
    """Where calibrations lie: `DOLLARTUNE_CACHE`, else the user's cache folder."""
    return cache_directory() / "calibration"


def calibration_path(bare: Bare, quantize: str) -> Path:
    """The file of this machine and this backbone."""
    config = bare.model.config.to_dict()
    config.pop("_name_or_path", None)  # the same model under another path is as fast
    facts = {
        "machine": machine_facts(),
        "config": {k: v for k, v in config.items() if isinstance(v, int | float | str | bool)},
        "objective": bare.objective,
        "dtype": str(bare.dtype),
        "quantize": quantize,
    }
    return calibration_folder() / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}.json"


def machine_facts() -> dict[str, object]:
    """What decides how fast the same work is done."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def kept_speed(path: Path) -> Speed | None:
    """A calibration of before, if there is one."""
    try:
        return Speed.from_json(json.loads(path.read_text())["speed"])
    except (OSError, KeyError, ValueError):  # none, or of another version: measured again
        return None


def keep_speed(path: Path, speed: Speed, measured: Sequence[MeasuredStep]) -> None:
    """Writes a calibration down, where the cache folder can be written."""
    steps = [{"method": m.method, "shape": vars(m.shape), "seconds": m.seconds} for m in measured]
    text = json.dumps({"speed": speed.to_json(), "machine": machine_facts(), "steps": steps}, indent=1)
    keep(path, text.encode())
