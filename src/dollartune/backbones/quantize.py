"""Backbones with linear layers in 4 bits: NF4 with double quantization, as QLoRA has it.

    W ──> blocks of 64 ──> 4-bit codes + one absmax per block ──> the absmax in 8 bits, blocks of 256, fp32 each

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", sections 3 and Appendix A; bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.checkpoint_files import NF4_PACKAGES
from dollartune.errors import need_package


def nf4_settings(dtype: torch.dtype) -> Any:
    """What transformers is told; products are computed in `dtype`.

    Raises:
        UserError: bitsandbytes or accelerate is not installed.
    """
    for package in NF4_PACKAGES:
        need_package(package, "quantize: nf4")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_scales(model: nn.Module) -> None:
    """Keeps packed weights as they were loaded: else the first forward pass on a processor repacks them and rounds their scales,
    and what reads a weight later gets garbage."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # of bitsandbytes, unknown to torch's types


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear's weight is packed in 4 bits."""
    return getattr(module.weight, "quant_state", None) is not None


def dequantized(weight: Any) -> Tensor:
    """A packed weight (out, in) as numbers."""
    import bitsandbytes.functional as bnb

    whole: Tensor = bnb.dequantize_4bit(weight.data, weight.quant_state)
    return whole
