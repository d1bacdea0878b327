"""An adapter as a directory: `adapter.safetensors` with the tensors, `adapter.json` with all that is needed to use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollartune.attach.adapter import Adapter
from dollartune.backbones.loading import Backbone
from dollartune.errors import UserError
from dollartune.methods.registry import build_method

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"
FORMAT_VERSION = 1


def save_adapter(folder: Path, adapter: Adapter, info: Mapping[str, Any]) -> int:
    """Writes an adapter.

    Args:
        info: backbone, task, labels, scores and so on, stored beside the methods.

    Returns:
        Size of the weights file in bytes.
    """
    from safetensors.torch import save

    from dollartune.study.store import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    weights = save(adapter.tensors(), metadata={"format": "pt"})
    config = {
        "format_version": FORMAT_VERSION,
        "methods": [method.describe() for method in adapter.methods],
        "seed": adapter.seed,
        "trainable_parameters": adapter.count(),
        **info,
    }
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False).encode())
    return len(weights)


def read_info(folder: Path) -> dict[str, Any]:
    """An adapter's config.

    Raises:
        UserError: not an adapter directory, or a newer format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is not an adapter: it has no {CONFIG}.", hint="dollartune results STUDY")
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if info.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(f"{path} has format {info['format_version']}; this version reads up to {FORMAT_VERSION}.")
    return info


def load_adapter(folder: Path, backbone: Backbone) -> Adapter:
    """Builds the adapter for a loaded backbone and fills it with the saved tensors.

    Raises:
        UserError: missing or malformed files, or tensors that do not fit this backbone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_info(folder)
    methods = [build_method(settings) for settings in info["methods"]]
    adapter = Adapter(methods, backbone.anatomy, backbone.model, int(info.get("seed", 0)))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}.") from None
    adapter.load(tensors)
    return adapter.to(backbone.device)


def tokenizer_hash(processor: Any) -> str | None:
    """Hash of a tokenizer's vocabulary, to notice that an adapter meets another tokenizer than it was trained with."""
    if processor is None or not hasattr(processor, "get_vocab"):
        return None
    text = json.dumps(sorted(processor.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
