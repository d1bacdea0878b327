"""Every figure that a plan rests on where nothing was measured, and every margin of its own: what would be promised without
it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from test_trial_plan import HARDWARE, TASK, backbone, planner

from dollartune.backbones.loading import anatomy_of
from dollartune.budget.prices import machine
from dollartune.config import StudySettings
from dollartune.methods.registry import build_method
from dollartune.planner import asked_rows, calibration, dry_run_cache, roofline, study_plan, text_lengths
from dollartune.planner.batches import spread_lengths
from dollartune.planner.dry_run import Bare, bare
from dollartune.planner.hardware import named_hardware, this_hardware
from dollartune.planner.nf4_meta import PackedLinear
from dollartune.planner.op_trace import Kernel, Tracer, Work
from dollartune.planner.roofline import Speed, core_speed, fitted, machine_speed
from dollartune.planner.text_lengths import StatedLengths, task_shape
from dollartune.planner.trial_plan import baseline_estimate, memory_parts
from dollartune.study_file import load_study
from dollartune.tasks.base import Example, Task, Template
from dollartune.testing.tiny import meta_backbone, tiny_backbone
from dollartune.train.settings import TrainingSettings

A100 = machine("a100-80gb")
SMALL_HOST = machine("cpu-2")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))


# What a machine does per second before anything was measured on it


def test_a_gpu_gives_half_of_its_data_sheet_to_training_and_less_to_attention() -> None:
    speed = machine_speed(A100)
    assert speed.matrix_half == pytest.approx(156e12)
    assert speed.matrix_single == pytest.approx(13.65e12)
    assert speed.attention_share == 0.6
    assert speed.bytes_per_second == pytest.approx(0.7 * 2039e9, rel=0.01)
    assert speed.slow_per_second == pytest.approx(0.1 * 2039e9, rel=0.01)
    assert speed.launch_seconds == pytest.approx(9e-6)
    assert speed.direct_gain == 1.0, "oneDNN is a processor's"
    assert speed.uncertainty == 0.5


def test_a_rented_processor_gives_less_than_half_of_its_data_sheet() -> None:
    speed = machine_speed(SMALL_HOST)
    assert speed.matrix_half == pytest.approx(0.036e12)
    assert speed.matrix_single == pytest.approx(0.045e12)
    assert speed.attention_share == 0.3
    assert speed.bytes_per_second == pytest.approx(3e9, rel=0.1)
    assert speed.slow_per_second == pytest.approx(0.4e9), "two vCPUs are one core"
    assert speed.launch_seconds == pytest.approx(12e-6)
    assert speed.uncertainty == 0.6


def test_an_unknown_processor_is_a_server_core_times_its_threads() -> None:
    two, eight = core_speed(2, half=True), core_speed(8, half=False)
    assert (two.matrix_half, eight.matrix_half) == (300e9, 320e9)
    assert (two.matrix_single, eight.matrix_single) == (120e9, 480e9)
    assert (two.bytes_per_second, eight.bytes_per_second) == (12e9, 24e9), "four cores fill the memory's channels"
    assert (two.slow_per_second, eight.slow_per_second) == (1e9, 4e9)
    assert two.launch_seconds == eight.launch_seconds == pytest.approx(12e-6), "one thread launches"
    assert (two.attention_share, two.direct_gain, two.uncertainty) == (0.4, 1.5, 0.6)


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


def test_a_view_is_less_than_half_a_launch_and_kernels_of_each_kind_have_their_rate() -> None:
    speed = Speed(8e9, 4e9, 0.5, 1e30, 1e9, 1e-3, direct_gain=2.0)

    def seconds(kind: str, dtype: str = "float32") -> float:
        return speed.seconds(Work({Kernel(kind, dtype, 4 * 10**9, 0): 1}))

    assert seconds("view") == pytest.approx(0.4e-3)
    assert seconds("plain") == pytest.approx(1e-3), "only its bytes count"
    assert seconds("matrix") == pytest.approx(1.001)
    assert seconds("matrix", "bfloat16") == pytest.approx(0.501)
    assert seconds("attention") == pytest.approx(2.001)
    assert seconds("attention", "bfloat16") == pytest.approx(1.001)
    assert seconds("slow") == seconds("slow", "bfloat16") == pytest.approx(4.001)
    assert seconds("direct") == pytest.approx(0.501)
    assert seconds("direct", "bfloat16") == pytest.approx(0.501), "torch goes to oneDNN there by itself"


def products(count: int, flops: int) -> Work:
    return Work({Kernel("matrix", "float32", flops, 1): count})


def test_a_fit_weighs_measurements_against_the_data_sheet_by_how_exact_each_is() -> None:
    """Passes that are all products, 1.5 times as long as the prior says: between the two, where the weighted errors are least."""
    prior = core_speed(1, False)
    works = [products(10, 10**11), products(20, 10**11)]
    seconds = [1.5 * prior.seconds(work) for work in works]
    speed = fitted(prior, works, seconds, "made up")
    # log 1.5 is shared by one number and two passes: the number takes 2 / s^2 / (2 / s^2 + 1 / p^2) of it, s = 0.06, p = 0.5
    moved = 2 / 0.06**2 / (2 / 0.06**2 + 1 / 0.5**2)
    assert speed.matrix_single == pytest.approx(prior.matrix_single / 1.5**moved, rel=1e-4)
    assert speed.matrix_half == pytest.approx(prior.matrix_half), "nothing was said of it"
    assert speed.uncertainty == pytest.approx(0.15), "a few passes prove no more, however well they fit"


@pytest.mark.parametrize(("spread", "uncertainty"), [(1.2, 0.365), (2.0, 0.5)])
def test_passes_that_contradict_one_another_leave_a_fit_uncertain(spread: float, uncertainty: float) -> None:
    prior = core_speed(1, False)
    same = products(10, 10**11)
    seconds = prior.seconds(same)
    speed = fitted(prior, [same, same], [seconds * spread, seconds / spread], "made up")
    assert speed.uncertainty == pytest.approx(
        uncertainty, abs=0.005
    )  # two deviations of log 1.2; never more than a half


# Calibration


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
            return products(shape.rows, 10**6 * shape.prompt)

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


# Memory


def test_what_a_process_holds_before_and_beside_its_tensors() -> None:
    cuda, host = named_hardware(A100), named_hardware(SMALL_HOST)
    assert cuda.runtime_bytes == 700_000_000
    assert host.runtime_bytes == 500_000_000
    activations = {"activations": 10**9, "logits": 10**9}
    assert memory_parts(activations, cuda, False)["activations"] == 1.16e9
    assert memory_parts(activations, host, False)["activations"] == 1.68e9 + 20e6
    assert cuda.dollars(3600.0) == pytest.approx(A100.dollars_per_hour)


def test_a_gpu_here_has_the_slack_of_one_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    here = this_hardware(HARDWARE.speed)
    assert (here.memory_bytes, here.runtime_bytes, here.allocator_slack) == (2**30, 700_000_000, 0.08)


def test_four_bits_of_64_by_256_weights_have_their_scales() -> None:
    with torch.device("meta"):
        packed = PackedLinear(torch.nn.Linear(256, 640))
    blocks = 640 * 256 // 64
    assert packed.packed.numel() == 640 * 256 // 2 + blocks + 4 * blocks // 256


def test_attention_is_two_products_and_five_backward() -> None:
    rows, heads, queries, keys, size = 2, 3, 5, 7, 8
    q, k, v = (torch.empty(rows, heads, n, size, device="meta", requires_grad=True) for n in (queries, keys, keys))
    with Tracer() as tracer:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        forward = tracer.work()
        tracer.forget()
        out.sum().backward()
    product = 2 * rows * heads * queries * keys * size
    assert forward.flops == 2 * product
    assert tracer.work().flops == 5 * product


# Seconds and lengths


def test_loading_is_two_seconds_and_a_disk() -> None:
    assert study_plan.load_seconds(0) == 2.0
    assert study_plan.load_seconds(4 * 10**8) == 3.0


def test_bf16_is_trained_in_where_a_machine_computes_it_faster() -> None:
    assert study_plan.half_pays(A100)
    assert not study_plan.half_pays(SMALL_HOST), "its sheet has the same rate for both"
    from dataclasses import replace

    assert study_plan.half_pays(replace(A100, half_flops=1.6 * A100.single_flops))
    assert not study_plan.half_pays(replace(A100, half_flops=1.4 * A100.single_flops))


def test_a_baseline_takes_seconds() -> None:
    estimate = baseline_estimate()
    assert (estimate.low_seconds, estimate.seconds, estimate.high_seconds) == (0.2, 2.0, 20.0)


def test_texts_vary_from_half_to_twice_the_usual_length() -> None:
    lengths = [prompt for prompt, _ in spread_lengths(1000, 2)]
    assert lengths == [500, 600, 700, 800, 900, 1000, 1000, 1100, 1200, 1400, 1600, 2000]


def test_what_a_sample_of_rows_can_say() -> None:
    assert 0.04 < 1.96 * (0.25 / asked_rows.SAMPLE) ** 0.5 < 0.045, "a share is known to four points"


def small_task(rows: int) -> Task:
    examples = [Example(str(i), {"text": "the sky is blue " * 300}, "yes") for i in range(rows)]
    return Task(
        "made up", "classification", lambda: {"train": examples, "validation": examples[:2], "test": examples[:2]},
        Template("{text}"), {"yes": "yes", "no": "no"},
    )  # fmt: skip


@pytest.fixture
def settings() -> StudySettings:
    return load_study({"backbone": "a", "task": "boolq", "methods": ["lora"]})


def without_positions() -> Bare:
    t5 = meta_backbone("t5")
    return bare(copy.deepcopy(t5.model), "t5", t5.objective)


def test_lengths_of_240_rows_stand_for_all_and_no_input_is_longer_than_512(settings: StudySettings) -> None:
    shape, _ = task_shape(small_task(500), without_positions(), settings, 0)
    assert len(shape.lengths) == 240
    assert shape.limit == 512
    assert {prompt + answer for prompt, answer in shape.lengths} == {512}


def test_a_task_that_nobody_knows_has_as_many_rows_as_the_study_asks_for(settings: StudySettings) -> None:
    from dollartune.errors import UserError

    def refused() -> Any:
        raise UserError("no such file")

    unknown = Task("made up", "classification", refused, Template("{text}"), {"yes": "yes", "no": "no"})
    stated = StatedLengths.parse("300")
    assert stated == StatedLengths(300, 2)
    shape, notes = task_shape(unknown, without_positions(), settings, 0, stated)
    assert shape.train_rows == 10**9
    assert "as many rows as the study asks for" in " ".join(notes)


def test_free_generation_is_planned_three_tokens_beyond_the_label() -> None:
    """One token more of the label is one more of the text, so the seconds say how many there are."""
    shots = [build_method("zero_shot")]
    one = planner().estimate(shots).high_seconds
    assert one > 0
    from dollartune.evaluate.labels import LABEL_SLACK_TOKENS

    assert LABEL_SLACK_TOKENS == 3


def test_validation_is_planned_in_batches_of_32() -> None:
    small = planner(batch_size=4, validation_rows=40)
    forty = small.estimate([build_method("bitfit")], 40).parts["validate"]
    assert forty > 0
    from dollartune.train.batching import VALIDATION_ROWS_AT_ONCE

    assert VALIDATION_ROWS_AT_ONCE == 32


def test_the_cache_of_dry_runs_depends_on_the_whole_package() -> None:
    assert (dry_run_cache.PACKAGE / "train" / "loop.py").is_file()


def test_uncertain_ranges_are_in_order() -> None:
    for lower, upper in itertools.pairwise(
        (roofline.LEAST_UNCERTAINTY, roofline.MOST_UNCERTAINTY, roofline.UNMEASURED_CPU)
    ):
        assert lower < upper
    assert text_lengths.ALL_ROWS > 10**8
