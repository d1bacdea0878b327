"""What a backbone's files hold, in a few characters: other weights under the same name must not find old records."""

from __future__ import annotations

from pathlib import Path

from dollartune.backbones.locate import resolve
from dollartune.fingerprint import fingerprint


def of_backbone(name: str) -> str | None:
    """Of a backbone's directory (an embedded one's too); None for one from the hub, which has a revision."""
    path = Path(resolve(name))
    # A model card that is edited changes no weight.
    return fingerprint(path, without=(".md",)) if path.is_dir() else None
