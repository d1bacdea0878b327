"""Backbones with linear layers in 4 bits: NF4 with double quantization, as QLoRA has it.

    W ──> blocks of 64 ──> 4-bit codes + one absmax per block ──> the absmax in 8 bits, blocks of 256, fp32 each

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", sections 3 and Appendix A; bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dollartune.backbones.device_map import need_package

BLOCK, OUTER_BLOCK = 64, 256
"""Weights per absmax, and absmax values per fp32 number."""
TABLES = 16 * 4 + 256 * 4 + 4
"""Bytes of a linear's own tables: 16 codes of NF4, 256 of the absmax values, and their mean, in fp32."""


def nf4_settings(dtype: torch.dtype) -> Any:
    """What transformers is told; products are computed in `dtype`.

    Raises:
        UserError: bitsandbytes or accelerate is not installed.
    """
    for package in ("bitsandbytes", "accelerate"):
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


def nf4_bytes(weights: int) -> int:
    """Bytes that a linear of so many weights takes: about 0.516 per weight.

    weights / 2 codes, weights / 64 absmax values of a byte, and for every 256 of those an fp32 number, plus tables.
    """
    blocks = -(-weights // BLOCK)
    # -(-a // b) rounds up: an incomplete block takes a whole one's scale.
    return -(-weights // 2) + blocks + 4 * -(-blocks // OUTER_BLOCK) + TABLES


def packed_linears(model: nn.Module) -> list[nn.Module]:
    """The linears that loading in 4 bits packs, by the rule of transformers: all but the head and what is tied."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(model)
    precise = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # T5's wo
    return [
        module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, kept)
        and not precise & set(name.split("."))
    ]
