"""Whether two loaded backbones have the same weights, whatever they are called: a hash of some values of every tensor.

A folder may be written over, and one model goes by many names (a hub id, a folder, a short name); its weights say which it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from dollartune.backbones.token_table import token_table

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy

_VALUES = 256
"""Of each tensor, at equal distances. Whatever tunes a tensor changes nearly all of its values, and to hash all of 14 GB takes
as long as to load them."""


def weights_hash(model: Any, anatomy: Anatomy, drawn: Collection[str] = ()) -> str | None:
    """Of a model's parameters but its heads, which differ by what it is used for; None where they are not here as numbers (packed
    in 4 bits, on the meta device).

    In bf16, since the same weights may be loaded as fp32 or as bf16; by shapes and values and not by names, which releases of
    transformers change.

    Args:
        drawn: names of parameters that its checkpoint has not.
    """
    table = token_table(model)
    tied = set() if table is None else {id(parameter) for parameter in table.parameters()}
    heads = {id(p) for site in anatomy.heads for p in model.get_submodule(site.exit).parameters()} - tied
    digests = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            return None
        if id(parameter) not in heads and name not in drawn:
            values = parameter.detach().flatten()
            values = values[:: max(1, values.numel() // _VALUES)].to("cpu", torch.bfloat16)
            digest = hashlib.blake2b(str(tuple(parameter.shape)).encode())
            digest.update(values.contiguous().view(torch.uint8).numpy())
            digests.append(digest.digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=8).hexdigest()
