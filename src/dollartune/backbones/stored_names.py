"""Which parameters of a model its checkpoint has not, told from the names in the checkpoint: no weight is read.

A plan must know what `load_backbone` will learn: a pooler that was never stored is drawn anew, and is part of the head.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError

from torch import nn

from dollartune.backbones.locate import resolve

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers looks for them."""
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of checkpoints that came from TensorFlow -> those of today, as transformers reads them."""


def stored_names(name: str) -> frozenset[str]:
    """Names of the tensors in a backbone's checkpoint; none where it is not on this machine or cannot be read."""
    from safetensors import SafetensorError

    path = _checkpoint(resolve(name))
    try:
        return frozenset() if path is None else _names_in(path)
    # damaged, or a pickle of before zip files: loading reads it, or says what is wrong; a plan goes on without
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError):
        return frozenset()


def _names_in(path: Path) -> frozenset[str]:
    if path.suffix == ".json":
        return frozenset(json.loads(path.read_text(encoding="utf8"))["weight_map"])
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return frozenset(file.keys())
    import torch

    # the names alone: no weight is read, and no code in the pickle runs
    return frozenset(torch.load(path, map_location="meta", mmap=True, weights_only=True))


def _checkpoint(place: str) -> Path | None:
    if Path(place).is_dir():
        return next((path for file in _FILES if (path := Path(place) / file).is_file()), None)
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(place, file) for file in _FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def drawn_parameters(name: str, model: nn.Module) -> frozenset[str]:
    """Names of the model's parameters that its checkpoint has not; none where its names cannot be told."""
    start = f"{getattr(model, 'base_model_prefix', '')}."

    def plain(parameter: str) -> str:
        for old, new in _OLD.items():
            parameter = parameter.replace(old, new)
        return parameter.removeprefix(start)  # checkpoints of a base model have no prefix

    stored = {plain(one) for one in stored_names(name)}
    names = [one for one, _ in model.named_parameters()]
    missing = frozenset(one for one in names if plain(one) not in stored)
    # of a checkpoint whose names transformers translates nothing would be found
    return missing if 2 * len(missing) < len(names) else frozenset()
