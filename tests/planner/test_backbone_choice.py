"""The largest backbone at hand that the money pays for, of the kind that suits the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.planner import backbone_choice
from dollartune.planner.backbone_choice import AtHand, at_hand, choose_backbone, matrix_flops


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_choice, "matrix_flops", lambda: 1e10)


# the kinds are those of real backbones; only the sizes are made up
LARGE, SMALL = AtHand("tiny-encoder", 10**8, "embedded"), AtHand("tiny-decoder", 10**6, "embedded")


def test_encoders_choose_classes_and_decoders_write(moods: Any) -> None:
    assert choose_backbone(moods, float("inf"), [LARGE, SMALL]).name == "tiny-encoder"
    writes = replace(moods, kind="generation")
    assert choose_backbone(writes, float("inf"), [LARGE, SMALL]).name == "tiny-decoder"


def test_money_decides_among_those_that_suit(moods: Any) -> None:
    small = replace(LARGE, parameters=10**5)
    rich, poor = (choose_backbone(moods, seconds, [LARGE, small]) for seconds in (1e6, 0.01))
    assert "largest encoder here" in rich.why
    assert "more than half the budget" in poor.why
    rows = len(moods.load()["train"])
    assert f"{rows:,} rows" in rich.why


def test_nothing_suits(moods: Any) -> None:
    with pytest.raises(UserError, match="needs one of vision"):
        choose_backbone(replace(moods, modality="image"), 60, [LARGE, SMALL])


def test_what_is_at_hand_has_its_true_size_and_a_speed() -> None:
    found = at_hand()
    assert [one.parameters for one in found] == sorted((one.parameters for one in found), reverse=True)
    assert {"tiny-decoder", "tiny-vit"} <= {one.name for one in found}
    one = found[0]
    assert one.seconds_per_1000_rows(128) == pytest.approx(2 * one.seconds_per_1000_rows(64))
    assert matrix_flops.__wrapped__() > 1e6
