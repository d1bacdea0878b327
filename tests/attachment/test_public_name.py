"""`from dollartune import attach` works whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
{before}
from dollartune import attach
from dollartune.methods import LoRA
from dollartune.testing import tiny_backbone
backbone = tiny_backbone("opt")
attached = attach(backbone.model, LoRA(rank=2))
assert attached.adapters
attached.detach()
from dollartune import attach as again
assert again is attach
"""


@pytest.mark.parametrize("before", ["", "import dollartune.attachment", "from dollartune import attach"])
def test_attach_is_the_function(before: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
