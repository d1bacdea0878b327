"""An adapter as a directory.

adapter.safetensors   the tensors, by edit
adapter.json          methods, backbone and revision, tokenizer, task, scores, cost, versions
README.md             the model card, written from adapter.json
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.device_placement import move_to_backbone
from dollartune.errors import UserError
from dollartune.export.card import write_card
from dollartune.export.targets import head_of, refused_by_weights, serving_lines
from dollartune.files import finite, write_atomically, write_json
from dollartune.methods.registry import build_method
from dollartune.methods.stored_adapter import CONFIG, FORMAT_VERSION, WEIGHTS, read_info
from dollartune.train.head_start import classes_scored
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from torch import nn

    from dollartune.backbones.anatomy import Anatomy
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method

CARD = "README.md"


def save_adapter(folder: Path, adapter: Adapter, info: Mapping[str, Any]) -> int:
    """Writes an adapter and its card.

    Args:
        info: backbone, task, labels, scores and so on, stored beside the methods.

    Returns:
        Size of the weights file in bytes.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    # In memory first: what cannot be saved must not leave half a folder.
    weights = save(adapter.tensors(), metadata={"format": "pt"})
    config = {
        "format_version": FORMAT_VERSION,
        "methods": [method.describe() for method in adapter.methods],
        "kind": adapter.backbone_kind,
        "head_module": head_of(adapter),
        "seed": adapter.seed,
        "trainable_parameters": adapter.count(),
        "versions": versions(),
        **info,
    }
    write_atomically(folder / WEIGHTS, weights)
    _write_description(folder, config, adapter.methods)
    return len(weights)


def update_info(folder: Path, changes: Mapping[str, Any]) -> int:
    """Changes what a stored adapter says of itself, and its card; the tensors stay as they are.

    Returns:
        Size of the weights file in bytes.
    """
    config = {**read_info(folder), **changes}
    _write_description(folder, config, [build_method(settings) for settings in config["methods"]])
    return (folder / WEIGHTS).stat().st_size


def _write_description(folder: Path, config: Mapping[str, Any], methods: Sequence[Method[Any]]) -> None:
    # A score without a value (an AUC of one class) is NaN, which `read_info` refuses as no JSON.
    config = finite(config)
    refused = refused_by_weights(config.get("random_weights_seed"))
    serves = serving_lines(methods, config.get("head_module") or "", config.get("kind"), refused)
    write_json(folder / CONFIG, config)
    write_atomically(folder / CARD, write_card(config, _title(config), serves=serves).encode())


def _title(info: Mapping[str, Any]) -> str:
    backbone = str(info.get("backbone") or "adapter").rstrip("/").rsplit("/", 1)[-1]
    task = (info.get("task") or {}).get("name")
    return f"{backbone} for {task}" if task else f"An adapter for {backbone}"


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that wrote an adapter."""
    from importlib.metadata import version

    return {name: version(name) for name in ("dollartune", "torch", "transformers")}


def load_adapter(folder: Path, backbone: Backbone) -> Adapter:
    """Builds the adapter for a loaded backbone and fills it with the saved tensors.

    Raises:
        UserError: missing or malformed files, a method that leaves no adapter, a tokenizer or tensors that do not fit this
            backbone.
    """
    info = read_info(folder)
    tensors = read_tensors(folder, WEIGHTS)
    check_tokenizer(folder, info, backbone)
    check_weights(folder, info, backbone)
    methods = [build_method(settings) for settings in info["methods"]]
    # What trains nothing has no tensors: under its name the untouched backbone would answer.
    if untrained := [method.name for method in methods if not method.capabilities.trains]:
        raise UserError(
            f"{str(folder)!r} is of {', '.join(untrained)}, which trains nothing and leaves no adapter.",
            hint="Compare it with other methods in a study: dollartune init",
        )
    # Before the adapter is built: settings from a stranger may ask for a rank of a million.
    check_sizes(folder, methods, backbone.anatomy, backbone.model, sum(tensor.numel() for tensor in tensors.values()))
    anatomy = backbone.anatomy
    if not any(".edits.pooler." in name for name in tensors):
        # Of before what is drawn beside a head was trained with it: it stays as it was drawn.
        anatomy = replace(anatomy, sites=tuple(site for site in anatomy.sites if not site.role.startswith("pooler")))
    adapter = Adapter(methods, anatomy, backbone.model, int(info.get("seed", 0)))
    try:
        adapter.load(tensors)
    except UserError as error:
        raise UserError(
            f"{str(folder)!r} does not fit {backbone.name!r}: {error.message}",
            hint=f"It was tuned on {info.get('backbone')!r}.",
        ) from None
    check_labels(folder, info, adapter, backbone)
    return move_to_backbone(adapter, backbone.model)


# Methods that prune while they train store less than they begin with: AdaLoRA starts at 1.5 times its rank, and a layer may
# keep one of its ranks. What is above sixteen times the file is no pruning.
_LARGEST_SHARE = 16
# Of the backbone, whose memory is there: a sparse difference may be a two-hundredth of the weights that it is taken from, and
# asks for as many values as they are, and some more for its gates.
_HARMLESS = 2


def check_sizes(folder: Path, methods: Sequence[Method[Any]], anatomy: Anatomy, model: nn.Module, stored: int) -> None:
    """Compares what the settings ask for with what the file holds, by each method's formula, before memory is taken.

    Args:
        stored: values in the adapter's file.

    Raises:
        UserError: the settings ask for far more values than the file has.
    """
    wanted = 0
    for method in methods:
        method.check(anatomy)
        sites = method.sites(anatomy) if method.capabilities.trains else ()
        wanted += sum(method.count(site) for site in sites)
        wanted += method.count_shared(sites, anatomy) if sites else 0
    own = sum(parameter.numel() for parameter in model.parameters())
    if wanted > max(_LARGEST_SHARE * max(stored, 1), _HARMLESS * own):
        raise UserError(
            f"the settings of {str(folder)!r} describe {wanted:,} values, its file holds {stored:,}: they do not belong together."
        )


def check_labels(folder: Path, info: Mapping[str, Any], adapter: Adapter, backbone: Backbone) -> None:
    """Refuses an adapter whose head scores other classes than its task has: whoever asks it would read past their end, or give
    one class the name of another.

    Raises:
        UserError: their numbers differ.
    """
    labels = list((info.get("task") or {}).get("label_words") or ())
    classes = classes_scored(adapter, backbone)
    if labels and classes is not None and classes != len(labels):
        raise UserError(
            f"the head of {str(folder)!r} scores {classes} classes; the task {info['task'].get('name')!r} has {len(labels)}: "
            f"{', '.join(labels[:5])}{' ...' if len(labels) > 5 else ''}.",
            hint="dollartune import PEFT_DIR --task TASK --out DIR, with the task that it was tuned on.",
        )


def check_weights(folder: Path, info: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuses an adapter that was tuned on random weights where the pretrained ones are loaded, and the other way round: all
    fits, and every answer is noise.

    Raises:
        UserError: it was.
    """
    if other := other_weights(info, backbone):
        raise UserError(f"{str(folder)!r}: {other}.", hint="Use it by itself: dollartune predict ADAPTER DATA")


def other_weights(info: Mapping[str, Any], backbone: Backbone) -> str:
    """Why the weights of a backbone of the right name are not those that an adapter was tuned on; empty where they are."""
    tuned, here = info.get("random_weights_seed"), backbone.random_weights_seed
    # Adapters of before it was written down say nothing.
    if "random_weights_seed" not in info or tuned == here:
        return ""
    return f"it was tuned on {_weights(tuned)} of {info.get('backbone')}, not on {_weights(here)}"


def _weights(seed: int | None) -> str:
    return "the pretrained weights" if seed is None else f"random weights (seed {seed})"


def check_tokenizer(folder: Path, info: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuses an adapter that was tuned with another tokenizer than the backbone's.

    Raises:
        UserError: it was.
    """
    expected = info.get("tokenizer")
    if expected and tokenizer_hash(backbone.processor) != expected:
        raise UserError(
            f"{str(folder)!r} was tuned with another tokenizer than {backbone.name!r} has, so its tokens mean other words here.",
            hint=f"It was tuned on {info.get('backbone')!r}.",
        )


def tokenizer_hash(processor: Any) -> str | None:
    """Hash of a tokenizer's vocabulary, to notice that an adapter meets another tokenizer than it was trained with."""
    if processor is None or not hasattr(processor, "get_vocab"):
        return None
    size, known = _HASHES.get(processor, (0, ""))
    if size != len(processor):  # new, or tokens were added
        text = json.dumps(sorted(processor.get_vocab().items()))
        size, known = _HASHES[processor] = len(processor), hashlib.sha256(text.encode()).hexdigest()[:16]
    return known


_HASHES: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()
"""Tokenizer -> its size and hash: a server asks at every adapter that is added."""
