"""Tiny backbones: one per process, the same weights every time, small, and of every family there is a role map for."""

from __future__ import annotations

import pytest
import torch

from dollartune.attachment import Attached
from dollartune.backbones.families import families
from dollartune.errors import UserError
from dollartune.testing import FAMILIES, tiny_backbone
from dollartune.testing.tiny import _build, _config, meta_backbone, select

BOTH = [
    (family, objective)
    for family in FAMILIES
    for objective in ("language", "classification")
    if (family, objective) not in {("vit", "language"), ("deit", "language")}
]


@pytest.mark.parametrize(("family", "objective"), BOTH)
def test_every_family_and_objective_runs(family: str, objective: str) -> None:
    backbone = tiny_backbone(f"{family}/{objective}")
    inputs = backbone.inputs(rows=3)
    with torch.no_grad():
        logits = backbone.logits(Attached(backbone.model, backbone.anatomy), inputs)
    assert torch.isfinite(logits).all()
    assert logits.shape[-1] == (3 if objective == "classification" else 99)
    assert sum(p.numel() for p in backbone.model.parameters()) < 70_000


def test_every_role_map_has_a_tiny_model() -> None:
    assert {backbone.model.config.model_type for backbone in map(tiny_backbone, FAMILIES)} <= set(families())
    known = {id(family) for name, family in families().items() if name != "umt5"}  # tests/train/test_trunk.py has it
    assert known == {id(tiny_backbone(name).anatomy.family) for name in FAMILIES}


def test_weights_depend_on_nothing_else() -> None:
    first = tiny_backbone("opt").model.state_dict()
    torch.rand(3)
    second = _build(_config("opt"), "opt", "language").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert tiny_backbone("opt") is tiny_backbone("opt")


def test_meta_model_has_the_same_sites() -> None:
    assert meta_backbone("t5").anatomy.sites == tiny_backbone("t5").anatomy.sites
    assert next(meta_backbone("t5").model.parameters()).device.type == "meta"


def test_rows_lose_columns_that_are_padding() -> None:
    inputs = tiny_backbone("bert").inputs(rows=4, tokens=7)
    assert select(inputs, slice(3, 4))["input_ids"].shape == (1, 5)
    assert select(inputs, slice(0, 4))["input_ids"].shape == (4, 7)


def test_unknown_family_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'gpt2'"):
        tiny_backbone("gpt")
