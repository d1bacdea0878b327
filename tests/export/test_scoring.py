"""Scoring what was written, where the peft library is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.export.scoring import peft_logits


def test_scoring_by_peft_without_peft_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone: Any = None  # not reached
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs peft, which is not installed") as caught:
        peft_logits(backbone, tmp_path, {})
    assert caught.value.hint == "pip install peft"
