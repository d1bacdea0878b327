"""Every number by which a backbone is chosen where nobody named one."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dollartune.backbones.embedded import embedded_path
from dollartune.planner import backbone_choice
from dollartune.planner.backbone_choice import AtHand, choose_backbone, matrix_flops, stored_parameters, typical_tokens
from dollartune.tasks.base import Example, Task, Template

SMALL, LARGE = AtHand("small", 10_000_000, "here"), AtHand("large", 100_000_000, "here")


def task(texts: list[str], modality: Any = "text") -> Task:
    rows = [Example(str(i), {"text": text}, "yes") for i, text in enumerate(texts)]
    return Task(
        "made up", "classification", lambda: {"train": rows, "validation": rows[:2], "test": rows[:2]},
        Template("{text}"), {"yes": "yes", "no": "no"}, modality=modality,
    )  # fmt: skip


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does 10^12 operations a second in a matrix product; all backbones are encoders."""
    monkeypatch.setattr(backbone_choice, "matrix_flops", lambda: 1e12)
    monkeypatch.setattr(backbone_choice, "outline_of", lambda name: SimpleNamespace(kind="encoder"))


def test_a_pass_over_1000_rows_of_64_tokens_reaches_four_tenths_of_the_machine(fast: None) -> None:
    assert LARGE.seconds_per_1000_rows() == pytest.approx(1000 * 64 * 2e8 / 0.4e12)


def test_a_row_has_the_tokens_of_the_middle_one_of_200_at_four_characters_each() -> None:
    texts = ["x" * 80] * 100 + ["x" * 400] * 100 + ["x" * 4000] * 300
    assert typical_tokens(task(texts)) == 100
    assert typical_tokens(task(["x"] * 10)) == 8, "start and end marks, and the words of a prompt"
    assert typical_tokens(task(texts, "image")) == 64


def test_the_largest_backbone_is_taken_whose_epoch_fits_into_half_of_the_budget(fast: None) -> None:
    rows = task(["x" * 400] * 3000)
    epoch = 3 * (3000 * 100 * 2e8 / 0.4e12)  # a step is three passes
    assert choose_backbone(rows, 2.02 * epoch, [LARGE, SMALL]).name == "large"
    assert choose_backbone(rows, 1.98 * epoch, [LARGE, SMALL]).name == "small"


def test_a_machine_is_measured_by_the_best_of_eight_products_of_512_by_512(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(backbone_choice.time, "perf_counter", lambda: float(next(now)))
    assert matrix_flops.__wrapped__() == 2 * 512**3, "a second each"
    assert next(now) == 16


@pytest.mark.parametrize(("bf16", "side", "dtype"), [(True, 8192, torch.bfloat16), (False, 2048, torch.float32)])
def test_a_gpu_is_measured_by_products_that_take_longer_than_starting_them(
    bf16: bool, side: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, Any]] = []

    class Product:
        def __matmul__(self, other: Product) -> Product:
            return self

        def __getitem__(self, place: tuple[int, int]) -> Any:
            return SimpleNamespace(item=lambda: 0.0)

    def draw(rows: int, columns: int, device: str, dtype: Any) -> Product:
        drawn.append((columns, dtype))
        return Product()

    now = itertools.count()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch, "rand", draw)
    monkeypatch.setattr(backbone_choice.time, "perf_counter", lambda: float(next(now)))
    assert matrix_flops.__wrapped__() == 4 * 2 * side**3, "four to a wait"
    assert drawn == [(side, dtype)] * 2


def test_parameters_are_counted_from_a_file_s_header() -> None:
    assert 1_000_000 < stored_parameters(embedded_path("tiny-decoder") / "model.safetensors") < 100_000_000
