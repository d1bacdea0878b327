"""The optimizer of a trial: torch's AdamW, or one whose numbers move between a GPU's memory and the host's as there is room.

    adamw           2 fp32 numbers per trained parameter, in the GPU's memory from the first step on
    paged_adamw     the same numbers in memory that both sides share: pages that are not in use go to the host when
                    something else, such as a long row, needs the room, and come back for the step

Both compute AdamW: decoupled weight decay, betas 0.9 and 0.999, eps 1e-8, all in fp32. bitsandbytes decays after the step and
torch before it, a difference of lr² · decay, below rounding.

Source: Dettmers et al. 2023, "QLoRA", section 3 (paged optimizers); Loshchilov and Hutter 2019, "Decoupled Weight Decay
Regularization"; bitsandbytes, `PagedAdamW32bit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dollartune.errors import UserError, need_package

if TYPE_CHECKING:
    from dollartune.methods.base import ParameterGroup

Kind = Literal["adamw", "paged_adamw"]
PAGED_FROM = 100_000
"""Numbers in a tensor from which bitsandbytes pages what it keeps of it; smaller ones stay on the GPU."""


def check_optimizer(kind: Kind, device: str) -> None:
    """Refuses an optimizer that cannot work where trials are trained, on this kind of device (cpu, cuda).

    Raises:
        UserError: `paged_adamw` without a GPU, or without bitsandbytes.
    """
    if kind == "adamw":
        return
    if device != "cuda":
        raise UserError(
            f"training: optimizer: paged_adamw moves what is in a GPU's memory and needs CUDA; this machine trains on {device}.",
            hint="Set optimizer: adamw, or plan for a machine with a GPU: dollartune plan STUDY.yaml --machine t4",
        )
    need_package("bitsandbytes", "optimizer: paged_adamw")


def build_optimizer(groups: Sequence[ParameterGroup], kind: Kind = "adamw") -> Any:
    """The optimizer of parameter groups; for tensors without contents, which the planner passes, always torch's.

    Raises:
        UserError: as `check_optimizer`; or `paged_adamw` for tensors that are spread over processes.
    """
    tensors: list[Tensor] = [p for group in groups for p in group["params"]]
    # a plan on the meta device counts the same two numbers per parameter for both
    if kind == "adamw" or all(p.is_meta for p in tensors):
        return torch.optim.AdamW([dict(group) for group in groups], **_kernel(tensors))
    check_optimizer(kind, tensors[0].device.type)
    if not all(type(p) is torch.nn.Parameter for p in tensors):
        raise UserError(
            "training: optimizer: paged_adamw cannot hold what torchrun spreads over processes (full tuning).",
            hint="Set optimizer: adamw.",
        )
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit([dict(group) for group in groups], betas=(0.9, 0.999), eps=1e-8)


def _kernel(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """How torch's updates many small tensors: in one call for each where that exists, else an operation at a time for all
    (tensors without contents, shards)."""
    fused = all(type(p) is torch.nn.Parameter and p.device.type in ("cpu", "cuda") for p in tensors)
    return {"fused": True} if fused else {"foreach": True}


@torch.no_grad()
def restore(optimizer: Any, group: int, index: int, saved: dict[str, Tensor]) -> None:
    """Gives one parameter (by its group and its place there) the state that a checkpoint has of it."""
    parameter = optimizer.param_groups[group]["params"][index]
    if isinstance(optimizer, torch.optim.AdamW):
        # The fused kernel reads the count of steps where the parameter is; the others read it on the host.
        beside = bool(optimizer.param_groups[group].get("fused"))
        optimizer.state[parameter] = {
            k: t.to(parameter.device) if k != "step" or beside else t for k, t in saved.items()
        }
        return
    optimizer.init_state(optimizer.param_groups[group], parameter, group, index)  # memory that can be paged
    state = optimizer.state[parameter]
    for name, tensor in saved.items():
        if name == "step":
            state[name] = int(tensor)
        else:
            state[name].copy_(tensor)


def paged_bytes(optimizer: Any, kind: Kind) -> int:
    """Bytes of an optimizer's state that the host holds when the GPU has no room for them."""
    if kind != "paged_adamw":
        return 0
    tensors = [t for state in optimizer.state.values() for k, t in state.items() if k != "step"]
    return sum(t.numel() * t.element_size() for t in tensors if t.numel() >= PAGED_FROM)
