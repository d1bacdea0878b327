"""Shared fixtures: tiny random models of every family, and the real data and models beside the checkout, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("DOLLARTUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data sets (`data/`) and small real checkpoints (`models/`); the test is skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real data is not there: {SHARED} (set DOLLARTUNE_SHARED to its folder)")
    return SHARED
