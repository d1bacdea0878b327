"""A backbone's weights are known by what they are, whatever they are called and in whatever format they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollartune.backbones.loading import load_backbone
from dollartune.backbones.weights_hash import weights_hash
from dollartune.testing.directory import write_tiny
from dollartune.testing.tiny import meta_backbone, tiny_backbone


def hashed(name: str) -> Any:
    tiny = tiny_backbone(name)
    return tiny.model, tiny.anatomy, weights_hash(tiny.model, tiny.anatomy)


@pytest.mark.parametrize("name", ["llama", "t5", "bart", "bert/classification", "vit", "gpt2"])
def test_it_is_of_every_tensor_but_the_head_s(name: str) -> None:
    model, anatomy, before = hashed(name)
    heads = [model.get_submodule(site.exit) for site in anatomy.heads]
    shared = {id(p) for p in model.get_input_embeddings().parameters()} if anatomy.at("input") else set()
    of_heads = {id(p) for head in heads for p in head.parameters()} - shared
    for parameter in model.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.1).add_(0.1)  # as a tuned one: all of its values are others
            assert (weights_hash(model, anatomy) == before) == (id(parameter) in of_heads)
            parameter.copy_(kept)
    assert weights_hash(model, anatomy) == before


def test_it_is_the_same_in_every_format_and_for_every_use(tmp_path: Path) -> None:
    folder = str(write_tiny(tmp_path / "model", "llama"))
    whole = load_backbone(folder)
    assert whole.weights_hash
    assert load_backbone(folder, dtype=torch.bfloat16).weights_hash == whole.weights_hash
    assert load_backbone(folder, "classification", ("a", "b", "c")).weights_hash == whole.weights_hash
    assert load_backbone(folder, random_weights_seed=1).weights_hash != whole.weights_hash


def test_weights_that_are_not_here_have_none() -> None:
    shapes = meta_backbone("llama")
    assert weights_hash(shapes.model, shapes.anatomy) is None
