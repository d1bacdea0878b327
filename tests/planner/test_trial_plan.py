"""Estimates, refusals, lengths and the fit of a machine's speed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from dollartune.budget.prices import machine
from dollartune.methods.registry import build_method
from dollartune.planner.batches import TaskShape, spread_lengths
from dollartune.planner.dry_run import Bare, BatchShape, bare
from dollartune.planner.hardware import Hardware, named_hardware
from dollartune.planner.op_trace import Kernel, Work
from dollartune.planner.roofline import Speed, core_speed, fitted, machine_speed
from dollartune.planner.trial_plan import EvaluationPlan, Planner, refusal
from dollartune.testing.tiny import meta_backbone
from dollartune.train.settings import TrainingSettings

TASK = TaskShape("classification", 100, 40, 40, spread_lengths(12, 2), (1, 1), 4, 60)
HARDWARE = Hardware("here", 10**12, core_speed(1, False), 3.6, 1000, 0.5)


def backbone(family: str) -> Bare:
    tiny = meta_backbone(family)
    return bare(copy.deepcopy(tiny.model), family, tiny.objective)


def planner(hardware: Hardware = HARDWARE, family: str = "opt", **settings: object) -> Planner:
    return Planner(backbone(family), TASK, TrainingSettings(**settings), EvaluationPlan(40, 32, True), hardware)  # type: ignore[arg-type]


def test_an_estimate_adds_up() -> None:
    found = planner().estimate([build_method("lora")], 100)
    assert found.steps == 72  # 4.5 rows^0.6, in batches of 16
    assert found.peak_bytes == sum(found.memory.values())
    assert found.memory["runtime"] == 1000
    assert found.seconds == pytest.approx(sum(found.parts.values()) + 0.1)
    assert found.low_seconds < found.seconds < found.high_seconds
    assert set(found.parts) == {"tune", "validate", "score", "write"}


def test_more_rows_more_epochs_and_longer_prompts_take_longer() -> None:
    lora = [build_method("lora")]
    short, long = (planner(epochs=2).estimate(lora, rows).parts["tune"] for rows in (32, 96))
    assert long == pytest.approx(3 * short)
    bare_prompt, solved = (planner().estimate([build_method(m)]) for m in ("zero_shot", "few_shot(examples=2)"))
    assert solved.parts["score"] > bare_prompt.parts["score"]
    assert bare_prompt.trainable == bare_prompt.steps == 0


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    lora = [build_method("lora")]
    whole = planner().estimate(lora)
    single = planner(micro_batch_size=1).estimate(lora)
    between = int((whole.peak_bytes + single.peak_bytes) / 2 / 0.95)
    tight = planner(replace(HARDWARE, memory_bytes=between))
    misfit = refusal(tight, lora, tight.estimate(lora), None)
    assert misfit is not None
    assert 1 <= misfit.nearest["micro_batch_size"] < 16
    assert misfit.nearest_bytes <= tight.hardware.usable_bytes
    sentence = misfit.sentence("lora", "here")
    assert "lora needs" in sentence
    assert f"micro_batch_size: {misfit.nearest['micro_batch_size']}" in sentence
    allowed = planner(replace(HARDWARE, limit_bytes=tight.hardware.usable_bytes))
    refused = refusal(allowed, lora, allowed.estimate(lora), None)
    assert refused is not None
    assert "the budget allows" in refused.sentence("lora", "here")


def test_what_no_setting_can_help_is_said() -> None:
    full = [build_method("full")]
    tiny = planner(replace(HARDWARE, memory_bytes=1000))
    misfit = refusal(tiny, full, tiny.estimate(full), None)
    assert misfit is not None
    assert not misfit.nearest
    assert "No setting makes it fit" in misfit.sentence("full", "here")
    assert refusal(planner(), full, planner().estimate(full), None) is None


def test_batches_are_as_long_as_their_longest_rows() -> None:
    task = replace(TASK, lengths=((10, 1),) * 30 + ((50, 1),))
    shapes = task.batches(4, group=True)
    assert shapes.longest == BatchShape(4, 50, 1)
    assert 10 <= shapes.mean.prompt < 20
    assert task.batches(4, group=False).mean.prompt >= shapes.mean.prompt


def test_solved_examples_lengthen_prompts_up_to_the_limit() -> None:
    task = replace(TASK, lengths=((20, 2),), limit=80)
    assert task.with_examples(2).lengths == ((64, 2),)
    assert task.with_examples(100).lengths[0][0] <= 80


def work(count: int, flops: int, moved: int) -> Work:
    return Work({Kernel("matrix", "float32", flops, moved): count, Kernel("plain", "float32", 0, moved): 3 * count})


def test_the_fit_finds_a_machine_that_was_made_up() -> None:
    true = Speed(1e11, 3e10, 0.3, 8e9, 1e9, 2e-5)
    works = [work(50, 10**7, 10**5), work(200, 10**8, 10**6), work(100, 10**9, 10**7), work(400, 10**6, 10**4)]
    found = fitted(core_speed(1, False), works, [true.seconds(w) for w in works], "made up")
    for unseen in (work(80, 3 * 10**8, 2 * 10**6), work(300, 3 * 10**6, 5 * 10**4)):
        assert found.seconds(unseen) == pytest.approx(true.seconds(unseen), rel=0.1)
    assert found.uncertainty == pytest.approx(0.15)


def test_a_faster_machine_takes_less_and_half_precision_is_faster() -> None:
    load = work(100, 10**11, 10**8)
    half = Work({replace(kernel, dtype="bfloat16"): n for kernel, n in load.calls.items()})
    t4, h100 = (machine_speed(machine(name)) for name in ("t4", "h100"))
    assert h100.seconds(load) < t4.seconds(load)
    assert h100.seconds(half) < h100.seconds(load)
    assert named_hardware(machine("t4")).memory_bytes == 16 * 2**30


def test_the_best_state_so_far_takes_as_much_as_the_trained_one() -> None:
    lora = [build_method("lora")]
    patient, to_the_end = (planner(patience=patience).estimate(lora).memory["trained"] for patience in (3, None))
    assert patient == 2 * to_the_end
