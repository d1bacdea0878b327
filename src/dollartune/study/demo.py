"""The demo: real tasks from what is installed anyway, on backbones that ship with the package; no network, no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def demo_settings() -> dict[str, Any]:
    """The study that `dollartune demo` runs."""
    settings: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("demo.yaml").read_text(encoding="utf8"))
    return settings
