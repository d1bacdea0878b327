"""Kernels that are faster than a library's choice on this processor, in the modules of one backbone, for a while.

The function computed is the same within rounding; `tests/attach/test_kernels.py` holds each beside its plain twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dollartune.attachment.attached import Attached
from dollartune.attachment.attention import switch_attention
from dollartune.attachment.fast import cpu_attention, cpu_linear
from dollartune.backbones.device_map import home_device


@contextmanager
def fast_kernels(attached: Attached) -> Iterator[None]:
    """Within the block, passes are lean, and on a CPU frozen linears and bf16 attention use the kernels of this package.

    For passes over whole rows whose results at padding nobody reads: training and scoring. Nothing outside the model
    changes, and the model is as before at the end. Blocks may be nested.
    """
    before, attached.lean = attached.lean, True
    try:
        with _cpu_kernels(attached):
            yield
    finally:
        attached.lean = before


@contextmanager
def _cpu_kernels(attached: Attached) -> Iterator[None]:
    model: Any = attached.model
    device = home_device(model).type
    if (attached.kernels_of if device == "meta" else device) != "cpu":
        yield
        return
    replaced = []
    for module in model.modules():
        if "forward" not in module.__dict__ and (forward := cpu_linear.fast_forward(module)) is not None:
            object.__setattr__(module, "forward", forward)
            replaced.append(module)
    attention = attached.anatomy.family.attention_interface and model.dtype == torch.bfloat16
    switched = attention and switch_attention(model, "sdpa", cpu_attention.NAME, cpu_attention.cpu_attention)
    try:
        yield
    finally:
        for module in replaced:
            del module.__dict__["forward"]
        if switched:
            switch_attention(model, cpu_attention.NAME, "sdpa")
