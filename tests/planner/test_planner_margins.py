"""Every figure that a plan rests on where nothing was measured, and every margin of its own: what would be promised without
it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_trial_plan import HARDWARE, TASK, backbone, planner

from dollartune.budget.prices import machine
from dollartune.config import StudySettings
from dollartune.methods.registry import build_method
from dollartune.planner import asked_rows, dry_run_cache, roofline, study_plan, text_lengths
from dollartune.planner.batches import spread_lengths
from dollartune.planner.dry_run import Bare, bare
from dollartune.planner.nf4_meta import PackedLinear
from dollartune.planner.op_trace import Tracer
from dollartune.planner.text_lengths import StatedLengths, task_shape
from dollartune.planner.trial_plan import EvaluationPlan, Planner, baseline_estimate
from dollartune.study_file import load_study
from dollartune.tasks.base import Example, Task, Template
from dollartune.testing.tiny import meta_backbone
from dollartune.train.settings import TrainingSettings

A100 = machine("a100-80gb")
SMALL_HOST = machine("cpu-2")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))


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


def test_a_disk_that_reads_half_as_fast_is_within_the_range_of_a_study() -> None:
    loading = study_plan.load_seconds(4 * 10**8)
    assert study_plan.StudyPlan((), HARDWARE, loading, ()).range_seconds == (loading, 2 * loading)


def test_bf16_is_trained_in_where_a_machine_computes_it_faster() -> None:
    assert study_plan.half_pays(A100)
    assert not study_plan.half_pays(SMALL_HOST), "its sheet has the same rate for both"
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


def test_an_untuned_model_writes_three_tokens_beyond_its_label_and_a_tuned_one_ends_where_its_answers_do() -> None:
    def written(label_tokens: int) -> float:
        task = replace(TASK, label_tokens=(label_tokens, label_tokens))
        here = Planner(backbone("opt"), task, TrainingSettings(), EvaluationPlan(40, 32, True), HARDWARE)
        return here.estimate([build_method("zero_shot")]).parts["write"]

    token = written(2) - written(1)
    assert written(5) - written(2) == pytest.approx(3 * token)
    tuned = planner().estimate([build_method("full")]).parts["write"]  # adds no kernel of its own
    assert written(1) - tuned == pytest.approx(token), "four tokens, and an answer of two with its end mark"


def test_validation_is_planned_in_batches_of_32_however_small_those_of_the_training_are() -> None:
    def seconds(rows: int) -> float:
        return planner(batch_size=4, validation_rows=rows).estimate([build_method("bitfit")], 40).parts["validate"]

    assert 2 * seconds(32) == pytest.approx(seconds(33)) == pytest.approx(seconds(40))


def test_the_cache_of_dry_runs_depends_on_the_whole_package() -> None:
    assert (dry_run_cache.PACKAGE / "train" / "loop.py").is_file()


def test_uncertain_ranges_are_in_order() -> None:
    for lower, upper in itertools.pairwise(
        (roofline.LEAST_UNCERTAINTY, roofline.MOST_UNCERTAINTY, roofline.UNMEASURED_CPU)
    ):
        assert lower < upper
    assert text_lengths.ALL_ROWS > 10**8
