"""What a machine's memory holds beside what is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_trial_plan import HARDWARE, planner

from dollartune.budget.prices import machine
from dollartune.methods.registry import build_method
from dollartune.planner.hardware import named_hardware, this_hardware
from dollartune.planner.trial_plan import memory_parts, refusal

A100 = machine("a100-80gb")
SMALL_HOST = machine("cpu-2")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path))


def test_what_a_process_holds_before_and_beside_its_tensors() -> None:
    cuda, host = named_hardware(A100), named_hardware(SMALL_HOST)
    assert cuda.runtime_bytes == 700_000_000
    assert host.runtime_bytes == 500_000_000
    activations = {"activations": 10**9, "logits": 10**9}
    assert memory_parts(activations, cuda, False)["activations"] == 1.16e9
    assert memory_parts(activations, host, False)["activations"] == 1.66e9
    compiled = {"kernels": 10**7}
    assert memory_parts(compiled, host, False)["kernels"] == 10e6 + 12e6
    assert memory_parts(compiled, cuda, False)["kernels"] == 10e6
    assert cuda.dollars(3600.0) == pytest.approx(A100.dollars_per_hour)


def test_a_gpu_here_has_the_slack_of_one_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    here = this_hardware(HARDWARE.speed)
    assert (here.memory_bytes, here.runtime_bytes, here.allocator_slack) == (2**30, 700_000_000, 0.08)


def test_a_memory_is_not_planned_to_its_last_byte() -> None:
    assert 0.93 < replace(HARDWARE, memory_bytes=10**9).usable_bytes / 10**9 < 0.97, (
        "5 % stay for all that is not planned"
    )
    lora = [build_method("lora")]
    needed = planner().estimate(lora).peak_bytes
    just = planner(replace(HARDWARE, memory_bytes=needed))
    assert refusal(just, lora, just.estimate(lora), None) is not None
