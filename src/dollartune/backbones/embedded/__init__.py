"""The pretrained backbones that ship with the package: small, made by `pretrain/`, loadable without a network.

Each is a folder in transformers' format beside this file, with a model card in its README.md.
"""

from __future__ import annotations

from pathlib import Path

from dollartune.errors import unknown_name

__all__ = ["embedded_names", "embedded_path"]


def embedded_names() -> tuple[str, ...]:
    """Names of the backbones that ship with this installation, sorted: `tiny-decoder`, `tiny-encoder` ..."""
    folder = Path(__file__).parent
    return tuple(sorted(path.name for path in folder.glob("tiny-*") if (path / "model.safetensors").is_file()))


def embedded_path(name: str) -> Path:
    """The folder of an embedded backbone, to be given to `from_pretrained`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in embedded_names():
        raise unknown_name("embedded backbone", name, embedded_names())
    return Path(__file__).parent / name
