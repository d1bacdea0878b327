"""Number formats: when bf16 pays, and processor settings that training wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dollartune.attachment.fast.processor import cpu_has_bf16

if TYPE_CHECKING:
    from dollartune.train.settings import TrainingSettings

_WIDE_ENOUGH = 256
"""d_model from which bf16 matrix products gain more on a CPU than the conversions around them cost."""


def choose_dtype(settings: TrainingSettings, d_model: int, device: torch.device) -> torch.dtype:
    """The backbone's number format."""
    if settings.precision != "auto":
        return torch.bfloat16 if settings.precision == "bf16" else torch.float32
    # without bf16 (T4, V100) fp32: fp16 would need loss scaling, and with it other results
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and d_model >= _WIDE_ENOUGH and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
