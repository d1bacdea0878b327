"""The weight of a site as (out, in), whatever way its module stores it: transposed, fused, quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dollartune.backbones.device_map import tensor_of
from dollartune.backbones.quantize import dequantized, is_quantized

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Part, Site

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats that a backbone's weights may have, by the names under which files and the command line know them."""


def module_weight(module: nn.Module) -> Tensor:
    """A linear module's weight as stored, dequantized where it is in 4 bits, fetched where a device map put it away."""
    weight: Tensor = tensor_of(module, "weight")
    if is_quantized(module):
        weight = dequantized(weight)
    return weight


def site_weight(module: nn.Module, site: Site) -> Tensor:
    """W (out, in) of one role; for a fused linear the rows that belong to it."""
    weight = module_weight(module)
    weight = weight.T if site.transposed else weight
    return weight[part_rows(site, weight.shape[0])] if site.part is not None else weight


def site_bias(module: nn.Module, site: Site) -> Tensor | None:
    """b (out,) of one role, or None."""
    bias: Tensor | None = tensor_of(module, "bias")
    if bias is not None and site.part is not None:
        return bias[part_rows(site, bias.shape[0])]
    return bias


def part_rows(site: Site, fused: int) -> Tensor:
    """Indices of a role's outputs among the `fused` outputs of its module."""
    part: Part | None = site.part
    if part is None:
        return torch.arange(fused)
    if part.layout == "block":
        return torch.arange(fused).chunk(part.of)[part.index]
    if part.layout == "slice":
        return torch.arange(fused).view(part.groups, part.width)[:, part.start : part.stop].flatten()
    head_size = site.out_features // site.heads
    # Per head [q_h | k_h | v_h]: rows of one role lie apart.
    return torch.arange(fused).view(site.heads, part.of, head_size)[:, part.index].flatten()
