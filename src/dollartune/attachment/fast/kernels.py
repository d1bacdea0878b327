"""Kernels that are faster than a library's choice on this processor, in the modules of one backbone, for a while.

The function computed is the same within rounding; `tests/attachment/fast/test_kernels.py` holds each beside the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dollartune.attachment.attention import switch_attention
from dollartune.attachment.fast import cpu_attention, cpu_linear
from dollartune.backbones.device_map import home_device
from dollartune.backbones.swapped_forward import swapped_forward

if TYPE_CHECKING:
    from dollartune.attachment.routed_model import RoutedModel


@contextmanager
def fast_kernels(attached: RoutedModel) -> Iterator[None]:
    """Within the block, passes leave out what nobody reads, and on a CPU frozen linears and bf16 attention use this package's
    kernels.

    For passes over whole rows whose results at padding nobody reads: training and scoring. Nothing outside the model
    changes, and the model is as before at the end. Blocks may be nested.
    """
    with attached.changed(skip_unused=True), _cpu_kernels(attached):
        yield


@contextmanager
def fast_linears(attached: RoutedModel) -> Iterator[None]:
    """Within the block, frozen linears on a CPU use this package's kernels, and nothing else changes; for servers."""
    model: Any = attached.model
    # a module that runs something else already (a nested block, accelerate) keeps it
    plain = [module for module in model.modules() if "forward" not in module.__dict__]
    linears = [(module, forward) for module in plain if (forward := cpu_linear.fast_forward(module)) is not None]
    with swapped_forward(linears):
        yield


@contextmanager
def _cpu_kernels(attached: RoutedModel) -> Iterator[None]:
    model: Any = attached.model
    device = home_device(model).type
    if (attached.state.kernels_of if device == "meta" else device) != "cpu":
        yield
        return
    # in fp32 torch's fused attention is as fast as three products
    attention = attached.anatomy.family.attention_interface and model.dtype == torch.bfloat16
    switched = attention and switch_attention(model, "sdpa", cpu_attention.NAME, cpu_attention.cpu_attention)
    try:
        with fast_linears(attached):
            yield
    finally:
        if switched:
            switch_attention(model, cpu_attention.NAME, "sdpa")
