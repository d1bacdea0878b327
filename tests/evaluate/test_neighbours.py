"""A row's scores and texts are those of the row alone: some decoders of each kind of attention, below and beyond its window.

All of them, and batches of 32: `python tools/architectures/neighbours.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.evaluate.fp32_passes import surely_best
from dollartune.evaluate.labels import label_log_probabilities

TOOLS = Path(__file__).parents[2] / "tools" / "architectures"
KINDS = {
    "everything": "llama",
    "a window in every layer": "mistral_sliding",
    "a window in every other layer": "gemma2",
    "a window, in code of its own": "gpt_neo",
    "chunks": "llama4_text",
    "states": "mamba",
    "states without a mask": "rwkv",
    "two stacks": "t5",
    "two stacks, places counted by padding": "m2m_100",
    "two stacks with windows": "t5gemma",
    "two stacks, a window on one side": "led",
    "two stacks with experts": "nllb_moe",
}
BATCHES = (1, 8)
"""Nine rows: in batches of 8 they are all lengths around a window, and one is left over."""


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    sys.path.insert(0, str(TOOLS))
    try:
        import neighbours

        yield neighbours
    finally:
        sys.path.remove(str(TOOLS))
        for name in ("neighbours", "make_models"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", KINDS.values(), ids=list(KINDS))
def test_no_row_depends_on_its_neighbours(name: str, tool: Any, tmp_path: Path) -> None:
    tool.make(tool.RECIPES[name], tmp_path / name)
    backbone = tool.load_backbone(str(tmp_path / name), None, ())
    for check, run in tool.CHECKS.items():
        assert run(backbone, tmp_path, BATCHES), check


@pytest.mark.parametrize("name", ["mistral_sliding", "llama4_text"])
def test_nor_in_half_precision(name: str, tool: Any, tmp_path: Path) -> None:
    """Whatever this processor rounds by; `test_fp32_passes` has one that rounds by every shape."""
    tool.make(tool.RECIPES[name], tmp_path / name)
    backbone = tool.load_backbone(str(tmp_path / name), None, (), dtype=torch.bfloat16)
    assert tool.check_texts(backbone, BATCHES)
    attached, rows = Attached(backbone.model, backbone.anatomy), tool.drawn_rows(backbone, 9)

    def chosen(size: int) -> list[int]:
        def score(asked: Sequence[int]) -> torch.Tensor:
            some = [rows[row] for row in asked]
            return label_log_probabilities(backbone, attached, None, some, tool.ANSWERS, size)

        best: list[int] = surely_best(attached, score(range(9)), score).argmax(-1).tolist()
        return best

    assert chosen(8) == chosen(1)
    attached.detach()


def test_the_check_can_fail(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on from a padded cache where a window counts places, as label scores once did."""
    tool.make(tool.RECIPES["mistral_sliding"], tmp_path / "m")
    backbone = tool.load_backbone(str(tmp_path / "m"), None, ())
    monkeypatch.setattr("dollartune.evaluate.labels.may_go_on", lambda backbone: True)
    with pytest.raises(AssertionError, match="differ by"):
        tool.check_labels(backbone, BATCHES)
