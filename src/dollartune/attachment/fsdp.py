"""Tensors of which each process holds a shard (torch's DTensor): put together for use, spread again when filled."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def without_gradients() -> Iterator[None]:
    """Inference mode; where shards are gathered only `no_grad`, as the gathered weights are written again in training."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    with torch.no_grad() if together else torch.inference_mode():
        yield


def is_shard(tensor: Any) -> bool:
    """Whether it is one; without torch's module for them there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without gradients. Every process has to ask for it."""
    shards: Any = tensor
    return shards.full_tensor() if is_shard(tensor) else tensor


def together(tensor: Tensor) -> Tensor:
    """All of a tensor, for a pass over this process' own rows: the gradients of all processes are added into the shards."""
    if not is_shard(tensor):
        return tensor
    from torch.distributed.tensor import Partial, Replicate

    shards: Any = tensor
    gathered: Tensor = shards.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    return gathered


def spread_copies(edits: Iterable[nn.Module], mesh: Any) -> int:
    """Shards the values that edits have for the backbone's own parameters (full tuning), before an optimizer sees them.

    Returns:
        Number of tensors that are shards now.
    """
    from torch.distributed.tensor import Shard, distribute_tensor

    count = 0
    for edit in edits:
        for module in edit.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and not is_shard(parameter):
                    spread: Any = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                    module._parameters[name] = nn.Parameter(spread, parameter.requires_grad)
                    count += 1
    return count


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copies values into a tensor, of which this process may hold a shard."""
    if is_shard(tensor):
        from torch.distributed.tensor import distribute_tensor

        target: Any = tensor
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)
    tensor.data.copy_(values)
