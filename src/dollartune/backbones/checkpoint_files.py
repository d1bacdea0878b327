"""What a folder holds where a backbone is wanted, told from its files alone: no library is imported and no weight is read.

folder ──config.json?──> no:  an adapter, a study, a checkpoint one level down, nothing    (`no_backbone` says which)
                         yes: are its weights whole?                                       (`weights_problem`)
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from dollartune.errors import UserError, nearest

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""
NF4_PACKAGES = ("bitsandbytes", "accelerate")
"""With which transformers packs weights into 4 bits as it loads them."""
_OTHER_FORMATS = ("*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ckpt*", "*.pth", "*.pt", "*.safetensors", "*.bin")
_POINTER = b"version https://git-lfs"
_MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its format has it."""


def no_backbone(name: str, folder: Path) -> UserError:
    """The error for a folder without a config.json: what it is, and what was probably meant."""
    wanted = "a backbone's folder has a config.json"
    # The files of adapters by their names: `methods.stored_adapter` and peft's format are above this room.
    if (folder / "adapter.json").is_file():
        mine = _named_in(folder / "adapter.json", "backbone")
        return UserError(
            f"{name!r} is an adapter, not a backbone: {wanted}.",
            hint=f"It was tuned on {mine}: give that, and the adapter with --begin-with, --adapter or as predict's ADAPTER."
            if mine
            else None,
        )
    if (folder / "adapter_config.json").is_file():
        mine = _named_in(folder / "adapter_config.json", "base_model_name_or_path")
        return UserError(
            f"{name!r} is an adapter of the peft library{f' for {mine}' if mine else ''}, not a backbone: {wanted}.",
            hint=f"dollartune import {folder} --out FOLDER",
        )
    # as sentence-transformers keep their model (0_Transformer), the hub's cache (snapshots/HASH), unpacked archives
    inside = [path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/config.json"))]
    inside += sorted(folder.glob("*.gguf"))
    if inside:
        return UserError(
            f"{name!r} is no backbone's folder: it has no config.json itself.",
            hint=f"In it: {', '.join(map(str, inside[:3]))}",
        )
    there = sorted(path.name for path in folder.iterdir())
    holds = f"it holds {', '.join(there[:5])}{' ...' if len(there) > 5 else ''}" if there else "it is empty"
    return UserError(
        f"{name!r} is no backbone's folder: it has no config.json; {holds}.",
        hint="Copy the model's config.json into it, or give another: dollartune backbones ls",
    )


def _named_in(file: Path, key: str) -> str:
    """What a JSON file says under a key; empty where it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
        return str(content.get(key) or "")
    except (OSError, ValueError, AttributeError):
        return ""


def weights_problem(folder: Path) -> str | None:
    """Why the weights in a backbone's folder cannot be loaded, in a sentence; None where nothing is wrong with their files."""
    named = _named_in(folder / "config.json", "transformers_weights")  # takes the place of the usual names
    wanted = (named,) if named else _WEIGHTS
    first = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if first is None:
        others = sorted({path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern)})
        if not others:
            return "there are no weights beside its config.json"
        return f"its weights ({', '.join(others[:3])}) are not called {wanted[0]}, as those that are read are"
    if first.suffix != ".json":
        return _file_problem(first)
    try:
        parts = sorted(set(json.loads(first.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{first.name} does not say which file holds which tensor"
    if missing := [part for part in parts if not (folder / part).is_file()]:
        return f"{len(missing)} of the {len(parts)} files of its weights are missing, {missing[0]} first"
    return next((problem for part in parts if (problem := _file_problem(folder / part)) is not None), None)


def _file_problem(path: Path) -> str | None:
    """What is wrong with one file of weights, by its size and header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        begins = file.read(len(_POINTER))
        if begins == _POINTER:
            return f"{path.name} is a pointer of git-lfs and not the weights: run `git lfs pull` in its folder"
        if path.suffix != ".safetensors":
            return None if size else f"{path.name} is empty"
        file.seek(0)
        # 8 bytes with the header's length, the header, then the tensors one after another
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 0 < length <= min(size, _MOST_HEADER_BYTES):
            return f"{path.name} is cut off or no safetensors file ({size:,} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{path.name} is cut off or no safetensors file ({size:,} bytes)"
    whole = 8 + length + max(ends, default=0)
    if size == whole:
        return None
    why = "it is cut off" if size < whole else "something stands behind its tensors"
    return f"{path.name} has {size:,} bytes, and its header tells of {whole:,}: {why}"


def nearest_folder(name: str) -> str:
    """A clause on a folder that a name with a slash may be a misspelling of: ` Did you mean 'models/bert'?`, or nothing."""
    path = Path(name).expanduser()
    if "/" not in name or not path.parent.is_dir():
        return ""
    return nearest(str(path), [str(entry) for entry in path.parent.iterdir() if entry.is_dir()])
