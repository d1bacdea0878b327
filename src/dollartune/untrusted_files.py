"""Reads files that may come from anyone: JSON and safetensors only, of bounded size, with finite numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

JSON_LIMIT_BYTES = 4_000_000
"""Of a configuration: real ones have kilobytes, and one of gigabytes would fill the memory of whoever opens it."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SAFE_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL", "U8", "I8")
"""Number formats that are read; float8 has no arithmetic here. Whether integers fit, the adapter's tensors say."""
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_name(name: str, what: str = "adapter name") -> str:
    """A name that is safe as a file name and a model name.

    Raises:
        UserError: it has path parts, white space or other signs, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{what} {name[:100]!r} is not allowed: use up to 96 letters, digits, dots, dashes and "
            "underscores, and begin with a letter or digit."
        )
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is missing, too large, malformed, no object, or asks to run code.
    """
    try:
        # Before it is read: a config of gigabytes would fill the memory.
        size = path.stat().st_size
    except OSError:
        why = f"it has no {path.name}" if path.parent.is_dir() else "there is no such folder"
        raise UserError(f"{str(path.parent)!r} is not an adapter of this format: {why}.") from None
    if size > JSON_LIMIT_BYTES:
        raise UserError(f"{path} has {size:,} bytes; an adapter's config has at most {JSON_LIMIT_BYTES:,}.")
    try:
        content = json.loads(path.read_text(encoding="utf8"), parse_constant=_refuse_constant)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, it holds a {type(content).__name__}.")
    for key in _CODE_KEYS:
        if content.get(key):
            raise UserError(f"{path} asks to run code ({key}: {content[key]!r}); adapters are data, so it is refused.")
    return content


def _refuse_constant(name: str) -> float:
    # Python's reader takes NaN and Infinity, which are no JSON; a scale that is not a number makes every output one.
    raise ValueError(f"{name} is no JSON number")


def resolved(path: Path) -> Path:
    """Where a path leads.

    Raises:
        UserError: its symbolic links lead in a circle, or it is too long.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):
        raise UserError(f"{path.name[:60]!r} is a symbolic link that leads nowhere; it is refused.") from None


def refuse_links(folder: Path, names: tuple[str, ...]) -> None:
    """Refuses files of a folder that are symbolic links out of it: whoever writes the folder must not choose what is read.

    Raises:
        UserError: one is.
    """
    inside = resolved(folder)
    for name in names:
        if resolved(folder / name).parent != inside:
            raise UserError(
                f"{name} is a symbolic link out of the adapter's folder; it is refused.", hint="Copy the file."
            )


def tensor_sizes(folder: Path, name: str) -> dict[str, int]:
    """Tensor -> number of values, by the header of a safetensors file alone; nothing is read into memory.

    Raises:
        UserError: it is malformed, or has a number format that is not read here.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / name
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
            formats = {key: str(part.get_dtype()) for key, part in slices.items()}
            sizes = {key: math.prod(part.get_shape()) for key, part in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from None
    for key, dtype in formats.items():
        if dtype not in SAFE_DTYPES:
            raise UserError(
                f"tensor {key!r} in {path} is stored as {dtype}; adapters are read as F32, F16, BF16 or F64."
            )
    return sizes


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing (a pickle in its place is named and refused), malformed, or holds numbers that are not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / name
    if not path.is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES) if folder.is_dir() else []
        if pickles:
            raise UserError(
                f"{str(folder)!r} has its weights as {', '.join(pickles)}, a pickle, which can run any code when "
                "it is read; it is refused.",
                hint=f"Save it again as {name} (safetensors).",
            )
        raise UserError(f"{str(folder)!r} is not an adapter of this format: it has no {name}.")
    # By the header first, which costs nothing: what is malformed is never loaded.
    tensor_sizes(folder, name)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from None
    for key, tensor in tensors.items():
        # One such number makes every output of every request that shares the batch's reduction not a number.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"tensor {key!r} in {path} holds values that are not finite.")
    return tensors
