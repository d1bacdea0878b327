"""When the doctor warns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dollartune.planner import doctor
from dollartune.train.precision import choose_dtype
from dollartune.train.settings import TrainingSettings


@pytest.mark.parametrize(("free", "state"), [(1_900_000_000, "warning"), (2_100_000_000, "ok")])
def test_the_doctor_warns_below_two_gigabytes_of_disk(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (disk,) = [line for line in doctor.examine() if line.what == "disk"]
    assert disk.state == state


def test_bf16_that_a_gpu_emulates_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    (line,) = [line for line in doctor._devices() if line.what == "bf16"]
    assert line.state == "missing"
    assert choose_dtype(TrainingSettings(), 1024, torch.device("cuda")) == torch.float32
