"""The container's limit counts wherever memory is asked for, in both versions of cgroups."""

import gc
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from dollartune.budget.peak_memory import resident_bytes
from dollartune.budget.prices import machine
from dollartune.planner.hardware import this_hardware
from dollartune.planner.roofline import machine_speed
from dollartune.train import free_memory
from dollartune.train.free_memory import (
    container_memory,
    free_bytes,
    free_host_bytes,
    host_memory_bytes,
    limited,
    memory_limited,
    need_free,
    over_limit,
)
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.malloc import give_back_freed_memory
from dollartune.train.micro_batch import rows_that_fit

MIB = 1 << 20


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    return tmp_path


def version2(folder: Path, limit: str, used: int, inactive_file: int = 0) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - inactive_file}\ninactive_file {inactive_file}\n")


def test_version_2(cgroup: Path) -> None:
    version2(cgroup, str(20 * MIB), 12 * MIB)
    assert host_memory_bytes() == 20 * MIB
    assert free_bytes(torch.device("cpu")) == 8 * MIB


def test_cached_files_that_the_kernel_drops_are_free(cgroup: Path) -> None:
    version2(cgroup, str(20 * MIB), 18 * MIB, inactive_file=10 * MIB)
    assert free_bytes(torch.device("cpu")) == 12 * MIB


def test_version_1(cgroup: Path) -> None:
    folder = cgroup / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(30 * MIB))
    (folder / "memory.usage_in_bytes").write_text(str(29 * MIB))
    assert host_memory_bytes() == 30 * MIB
    assert free_bytes(torch.device("cpu")) == MIB


def test_more_used_than_allowed_leaves_nothing(cgroup: Path) -> None:
    version2(cgroup, str(MIB), 2 * MIB)
    assert free_bytes(torch.device("cpu")) == 0


@pytest.mark.parametrize("limit", [None, "max", str(2**63 - 4096)])
def test_without_a_limit_the_host_counts(cgroup: Path, limit: str | None) -> None:
    if limit is not None:
        version2(cgroup, limit, MIB)
    assert container_memory() is None
    assert host_memory_bytes() == psutil.virtual_memory().total


def test_the_cache_of_the_frozen_prefix_takes_a_quarter_of_what_the_container_leaves(cgroup: Path) -> None:
    version2(cgroup, str(40 * MIB), 0)
    assert FrozenPrefixCache().memory_bytes == 10 * MIB


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is planned with where there is one")
def test_the_planner_knows_the_containers_limit(cgroup: Path) -> None:
    version2(cgroup, str(40 * MIB), 0)
    assert this_hardware(machine_speed(machine("t4"))).memory_bytes == 40 * MIB


def test_the_file_of_the_cache_takes_half_of_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    cache = FrozenPrefixCache(0, tmp_path)
    for name in (b"a", b"b", b"c"):  # 200 bytes each
        cache._store(name, torch.zeros(5, 10), 0.0, "")
    assert (cache.disk_bytes, cache.disk_used) == (500, 400)


def test_within_a_limit_less_is_free_and_more_is_seen() -> None:
    gc.collect()
    give_back_freed_memory()  # as the limit does: what other tests left would make room
    most = resident_bytes() + (400 << 20)
    with memory_limited(most, torch.device("cpu")):
        assert free_host_bytes() < most
        assert not over_limit()
        held = torch.ones(800 << 20, dtype=torch.uint8)
        assert over_limit()
        assert free_host_bytes() == 0
        assert rows_that_fit(1000, 10, 10, 0, torch.device("cpu")) == 0
        with pytest.raises(MemoryError, match="solving it takes about"):
            need_free(1, "solving it")
        del held
    assert not over_limit()
    with memory_limited(None, torch.device("cpu")):
        assert not limited(torch.device("cpu"))


def test_a_limit_that_is_taken_already_is_said_at_once() -> None:
    with (
        pytest.raises(MemoryError, match="before anything is trained"),
        memory_limited(1 << 20, torch.device("cpu")),
    ):
        pass


class Shared:
    """Of a GPU of 100 bytes a process has a part; 60 are free, of 30 that torch has reserved 20 are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: float) -> None:
        self.part = part
        for name, value in {
            "memory_reserved": lambda device: 30,
            "memory_allocated": lambda device: 20,
            "mem_get_info": lambda device: (60, 100),
            "get_device_properties": lambda device: SimpleNamespace(total_memory=100),
            "get_per_process_memory_fraction": lambda device: self.part,
            "set_per_process_memory_fraction": self.set,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def set(self, part: float, device: torch.device) -> None:
        self.part = part


@pytest.mark.parametrize(("part", "free"), [(1.0, 70), (0.5, 30), (0.1, 0)])
def test_a_worker_s_part_of_a_gpu_is_what_is_free(part: float, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Shared(monkeypatch, part)
    assert free_bytes(torch.device("cuda")) == free


@pytest.mark.parametrize(("part", "most", "inside"), [(0.5, 80, 0.5), (0.5, 40, 0.4), (1.0, 200, 1.0)])
def test_a_limit_leaves_a_worker_its_part_of_a_gpu(
    part: float, most: int, inside: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Shared(monkeypatch, part)
    with memory_limited(most, torch.device("cuda")):
        assert gpu.part == inside
        assert free_bytes(torch.device("cuda")) == min(70, inside * 100 - 20, most - 20)
    assert gpu.part == part
