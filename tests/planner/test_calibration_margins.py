"""What a calibration measures, and what it leaves out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_trial_plan import TASK, backbone

from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.budget.prices import machine
from dollartune.methods.registry import build_method
from dollartune.planner import calibration
from dollartune.planner.dry_run import Bare, BatchShape, bare
from dollartune.planner.op_trace import Kernel, Work
from dollartune.planner.roofline import machine_speed
from dollartune.testing.tape import Tape
from dollartune.testing.tiny import tiny_backbone
from dollartune.train.cuda_graphs import CudaGraphs
from dollartune.train.settings import TrainingSettings

A100 = machine("a100-80gb")
SMALL_HOST = machine("cpu-2")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))


class SteppingClock:
    """Seconds pass each time that it is looked at."""

    def __init__(self, step: float) -> None:
        self.step, self.looks = step, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.step * self.looks


def opt() -> tuple[Any, Bare]:
    tiny = tiny_backbone("opt")
    return bare(copy.deepcopy(tiny.model), "opt", tiny.objective), backbone("opt")


def calibrated(monkeypatch: pytest.MonkeyPatch, clock: SteppingClock, **more: Any) -> list[calibration.MeasuredStep]:
    """Cases with a trainer that only looks at the clock; shapes and their number are what is asked for here."""

    def timed(*given: Any, clock: Any, **_: Any) -> float:
        clock()
        return 1.0

    class Dry:
        adapter = None

        def __enter__(self) -> Dry:
            return self

        def __exit__(self, *error: object) -> None:
            return

        def training_work(self, shape: Any) -> Work:
            return Work({Kernel("matrix", "float32", 10**6 * shape.prompt, 1): shape.rows})

    monkeypatch.setattr(calibration, "timed_steps", timed)
    monkeypatch.setattr(calibration, "dry_run_of", lambda *given, **more: Dry())
    real, meta = opt()
    return calibration.calibrate(real, meta, TrainingSettings(), clock=clock, **more)[1]


def test_cases_of_a_calibration_are_small_enough_for_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = calibrated(monkeypatch, SteppingClock(0.0))
    assert len(steps) == 7
    assert [(step.shape.rows, step.shape.prompt) for step in steps][:5] == [
        (4, 128),
        (1, 32),
        (4, 64),
        (8, 128),
        (2, 256),
    ]
    short = calibrated(monkeypatch, SteppingClock(0.0), longest=10)
    assert min(step.shape.prompt for step in short) == 4


@pytest.mark.parametrize(("step", "cases"), [(9.0, 2), (14.9, 2), (16.0, 1), (29.0, 1), (31.0, 1), (4.0, 4)])
def test_no_case_begins_after_half_a_minute(monkeypatch: pytest.MonkeyPatch, step: float, cases: int) -> None:
    """Between two questions lies a case and the question itself: two looks at the clock."""
    assert len(calibrated(monkeypatch, SteppingClock(step))) == cases


def test_a_case_is_three_steps_after_one_that_warms_up() -> None:
    clock = SteppingClock(1.0)
    tiny = tiny_backbone("opt")
    model = bare(copy.deepcopy(tiny.model), "opt", tiny.objective)
    seconds = calibration.timed_steps(model, [build_method("bitfit")], TrainingSettings(), TASK_SHAPE, clock=clock)
    assert seconds == 1.0
    assert clock.looks == 2 * (3 + 1)


TASK_SHAPE = TASK.batches(2, True).mean


@pytest.mark.parametrize(("layers", "measured"), [(27, True), (30, False)])
def test_full_tuning_is_timed_up_to_400_million_parameters(layers: int, measured: bool) -> None:
    """16 bytes for each parameter are what a machine of 8 GB still has."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=1024,
        ffn_dim=4096,
        num_attention_heads=16,
        num_hidden_layers=layers,
        vocab_size=50_000,
        word_embed_proj_dim=1024,
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    large = Bare("large", model, None, anatomy_of(model), "language")
    assert 380e6 < large.anatomy.at("model")[0].parameters < 450e6
    assert (calibration._methods("full", large) is not None) == measured


def test_an_unknown_gpu_is_between_the_two_that_are_rented_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    speed = calibration.prior_speed()
    lower, upper = machine_speed(A100), machine_speed(machine("h100"))
    assert lower.matrix_half < speed.matrix_half == 2e14 < upper.matrix_half
    assert lower.matrix_single < speed.matrix_single == 2e13 < upper.matrix_single
    assert speed.bytes_per_second == 1e12 < lower.bytes_per_second
    assert (speed.slow_per_second, speed.attention_share) == (1e11, 0.6)
    assert speed.launch_seconds == pytest.approx(9e-6)
    assert speed.uncertainty == 0.5, "it was not measured"


def test_no_recording_of_a_pass_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = CudaGraphs(torch.device("cpu"), Tape, 10**6)
    monkeypatch.setattr(CudaGraphs, "on", lambda *_: on_gpu)
    # Training ends with it, and what was met would be forgotten.
    monkeypatch.setattr(CudaGraphs, "clear", lambda self: None)
    tiny = tiny_backbone("opt")
    real = Backbone("opt", tiny.model, None, tiny.anatomy, tiny.objective)
    calibration.timed_steps(real, [build_method("lora")], TrainingSettings(), BatchShape(2, 8))
    assert not on_gpu._met
