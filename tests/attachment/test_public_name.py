"""`from dollartune import attach` works whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

BEFORE = ("", "import dollartune.attachment", "from dollartune import attach")
CODE = """
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
FORKS = f"""
import os
import torch, transformers.models.opt.modeling_opt  # once: they take seconds
for before in {BEFORE!r}:
    child = os.fork()
    if child == 0:
        exec(before + {CODE!r})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, before
"""


def test_attach_is_the_function() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
