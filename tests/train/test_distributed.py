"""Two processes on a CPU train as one does: the same losses, and the same tensors at the end, in both of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import together
from commands import Command, two_by_torchrun

from dollartune.train.distributed import Processes

CASES: list[list[Any]] = [
    ["opt", "lora(rank=2, where='all_linear')", None, False],
    ["llama", "dora(rank=2)", 1, False],
    ["t5", "houlsby", None, True],
    ["opt", "prefix(tokens=3)", 2, False],
    ["opt", "full", None, False],
]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(CASES))
    code, _, error = Command(program=partial(two_by_torchrun, together.write, tmp_path)).ended(500)
    assert code == 0, error[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for case, one, other in zip(CASES, first, second, strict=True):
        alone = together.trained(*case)
        assert len(set(alone["losses"])) > 3
        for key in ("losses", "validation", "tensors"):
            assert one[key] == pytest.approx(other[key], rel=1e-6), (case, key)
            assert one[key] == pytest.approx(alone[key], rel=1e-4), (case, key)


@pytest.mark.parametrize(("longest", "micro", "size"), [(5, None, 2), (5, 2, 2), (1, None, 2), (16, 3, 4), (7, 1, 3)])
def test_every_row_is_passed_once_in_as_many_passes_everywhere(longest: int, micro: int | None, size: int) -> None:
    passes = [Processes(rank, size).micro_batches(longest, micro) for rank in range(size)]
    assert len({len(own) for own in passes}) == 1
    covered = [
        row for own in passes for start, stop, weight in own if weight for row in range(start, min(stop, longest))
    ]
    assert sorted(covered) == list(range(longest))
    assert Processes().micro_batches(longest, micro)[0] == (0, micro or longest, 1.0)
