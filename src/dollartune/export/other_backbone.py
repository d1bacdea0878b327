"""The backbone that an adapter names, and whether another one is the same: by its weights, and by its names where these are not
known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.backbones.content_hash import of_backbone
from dollartune.backbones.loading import load_backbone
from dollartune.backbones.locate import resolve
from dollartune.errors import UserError
from dollartune.export.directory import other_weights

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone


def other_backbone(folder: Path, info: Mapping[str, Any], backbone: Backbone) -> str:
    """Why an adapter's backbone is another one; empty where it is this one, or is not here to be compared.

    Args:
        folder: of the adapter, from which a relative name counts.
        info: what the adapter says of itself.
    """
    if other := other_weights(info, backbone):
        return other
    if not info.get("backbone"):
        return ""
    stored = stored_backbone(folder, str(info["backbone"]))
    mine, here = info.get("weights_hash"), backbone.weights_hash
    then, now = located(stored), located(backbone.name)
    alike = then == now
    if (mine is None or here is None) and not alike and Path(then).is_dir():
        # Weights in 4 bits have no hash, but the files that they were packed from can be compared.
        if Path(now).is_dir() and of_backbone(then) == of_backbone(now):
            return ""
        if mine is None and here is not None:  # of before hashes were written down, or of packed ones
            seed = backbone.random_weights_seed
            mine = load_backbone(stored, dtype=backbone.dtype, random_weights_seed=seed).weights_hash
    if mine is not None and here is not None:
        if mine == here:
            return ""
        return (
            f"the weights of {stored} are others now" if alike else f"it was tuned on {stored}, not on {backbone.name}"
        )
    # Moved or copied since, or tuned on another machine: tokenizer and sizes are all that is left to compare.
    gone = Path(stored).is_absolute() and not Path(stored).exists()
    revisions = {info.get("revision"), backbone.revision} - {None}
    if alike and len(revisions) > 1:
        return f"it was tuned on revision {info['revision']} of {stored}, not on {backbone.revision}"
    return "" if alike or gone else f"it was tuned on {stored}, not on {backbone.name}"


def stored_backbone(folder: Path, name: str) -> str:
    """The backbone that an adapter names. A relative path of earlier versions counts from where the study was run: it is looked
    for from the current folder, then from the adapter's and those around it."""
    path = Path(name)
    # A name without a slash or a dot is an embedded model or one of the hub.
    if path.is_absolute() or path.exists() or (not name.startswith((".", "..")) and "/" not in name):
        return name
    around = folder.resolve()
    return next((str(ancestor / name) for ancestor in (around, *around.parents) if (ancestor / name).exists()), name)


def located(name: str) -> str:
    """Where a backbone lies, by any of its names."""
    try:
        path = Path(resolve(name)).expanduser()
    except UserError:  # nothing is called so on this machine
        return name
    return str(path.resolve()) if path.exists() else str(path)
