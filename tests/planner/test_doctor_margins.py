"""When the doctor warns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dollartune.planner import doctor


@pytest.mark.parametrize(("free", "state"), [(1_900_000_000, "warning"), (2_100_000_000, "ok")])
def test_the_doctor_warns_below_two_gigabytes_of_disk(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (disk,) = [line for line in doctor.examine() if line.what == "disk"]
    assert disk.state == state
